#pragma once

#include "so8t-verdict.h"

#include "json.h"

#include <optional>
#include <string>

struct server_task_result_cmpl_final;

// How an answer of llama-server tells of its verdict, in the format of each endpoint.

struct so8t_answer {
    std::optional<so8t_verdict> verdict; // nothing: no change at all
    std::string text;                    // stands in place of the rest of the answer; empty: none
    std::string refusal;                 // not empty: the answer was refused
    bool annotations = false;            // Azure's content_filter_results are asked for
    bool follows     = false;            // text of the answer was sent before
    bool close_think = false;            // and ends inside a think block

    bool refused() const { return !refusal.empty(); }
    bool enforced() const { return refused() || !text.empty(); }
};

// response as final makes it: one object, or the last events of a stream
//
// Adds "so8t" to the last object. An enforced answer ends with text; a refused one has finish_reason
// "content_filter" and message.refusal (chat), incomplete_details (responses), stop_reason "refusal" (messages).
// Choices after the first have a "so8t" of their own.
common_json so8t_answer_format(common_json response, const server_task_result_cmpl_final & final);
