#pragma once

#include "so8t-verdict.h"

#include <optional>
#include <string>

// An answer of llama-server with its verdict, and what stands in place of its text (so8t-answer-format.h).
struct so8t_answer {
    std::optional<so8t_verdict> verdict; // nothing: no change at all
    std::string text;                    // stands in place of the rest of the answer; empty: none
    std::string refusal;                 // not empty: the answer was refused
    bool annotations = false;            // Azure's content_filter_results are asked for
    bool has_form    = false;            // it has a grammar or a JSON schema, which no text may follow
    bool follows     = false;            // text of the answer was sent before
    bool close_think = false;            // and ends inside a think block

    bool refused() const { return !refusal.empty(); }
    bool enforced() const { return refused() || !text.empty(); }

    // where a format has a field for refusals beside its text: what stands in which
    bool tells_text() const;
    bool tells_refusal() const;
};
