#pragma once

#include "so8t-answer.h"

#include "json.h"

struct server_task_result_cmpl_final;

// How an answer of llama-server tells of its verdict, in the format of each endpoint.
//
// response as final makes it: one object, or the last events of a stream
//
// Adds "so8t" to the last object. An enforced answer ends with text; a refused one has finish_reason "content_filter" and
// message.refusal (chat), incomplete_details (responses), stop_reason "refusal" (messages). What llama.cpp leaves out of
// the formats is added behind it (so8t-api-results.h).
// Choices after the first have a "so8t" of their own.
common_json so8t_answer_format(common_json response, const server_task_result_cmpl_final & final);
