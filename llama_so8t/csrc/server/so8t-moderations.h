#pragma once

#include "so8t-verdict.h"

#include <vector>

class common_json;

// POST /v1/moderations in the format of OpenAI.

// Of a body: the conversation of one message that each result is about. A list of texts has a result for each; a list of
// content parts is one message. Fields that are not known count for nothing, as clients send the model and more.
// throws std::invalid_argument: no input, too many inputs, or one that is no text
std::vector<common_json> so8t_moderation_inputs(const common_json & body);

// The result for one judged message: flagged, categories, category_scores, category_applied_input_types. It has the same
// keys for every text: OpenAI's categories, about which no head says anything (false, 0), and HEAD/LABEL for each label
// whose action is not allow. Values that are not finite have the score 1.
common_json so8t_moderation(const so8t_verdict & verdict);
