#include "so8t-guard.h"

#include "json.h"

#include <algorithm>
#include <cmath>

void so8t_guard::begin() {
    *this = {};
}

void so8t_guard::observe(llama_context * ctx, int32_t idx) {
    const llama_model * m = llama_get_model(ctx);
    if (llama_so8t_n_heads(m) == 0) {
        return;
    }
    if (!model) {
        model = m;
        observe(prompt, LLAMA_SO8T_SCOPE_PROMPT, ctx, idx);
    } else {
        observe(answer, LLAMA_SO8T_SCOPE_ANSWER, ctx, idx);
    }
}

void so8t_guard::observe(part_state & part, llama_so8t_scope scope, llama_context * ctx, int32_t idx) {
    const int32_t n_heads = llama_so8t_n_heads(model);
    part.heads.resize(n_heads);

    auto action = LLAMA_SO8T_ACTION_ALLOW;
    for (int32_t i_head = 0; i_head < n_heads && action != LLAMA_SO8T_ACTION_REFUSE; ++i_head) {
        const auto head = llama_so8t_get_head(model, i_head);
        if (!(head.scope & scope)) {
            continue;
        }
        auto & state = part.heads[i_head];
        state.probs.resize(head.n_labels);
        state.peak.resize(head.n_labels, 0.0f);
        state.n_above.resize(head.n_labels, 0);

        const bool finite = llama_so8t_get_probs_ith(ctx, i_head, idx, state.probs.data());
        if (!finite) {
            action = LLAMA_SO8T_ACTION_REFUSE; // fail closed
            continue;
        }
        const int32_t debounce = scope == LLAMA_SO8T_SCOPE_ANSWER ? head.debounce : 1;
        for (int32_t i = 0; i < head.n_labels; ++i) {
            const auto label = llama_so8t_get_label(model, i_head, i);
            state.peak[i]    = std::max(state.peak[i], state.probs[i]);
            state.n_above[i] = state.probs[i] >= label.threshold ? state.n_above[i] + 1 : 0;
            if (state.n_above[i] < debounce || label.action == LLAMA_SO8T_ACTION_ALLOW) {
                continue;
            }
            action = std::max(action, label.action);
            if (state.label < 0) {
                state.position = part.n_positions;
                state.label    = i;
            }
        }
    }
    part.action = std::max(part.action, action);
    part.n_positions++;
}

llama_so8t_action so8t_guard::decision() const {
    return std::max(prompt.action, answer.action);
}

static common_json so8t_probabilities(const llama_model * model, int32_t i_head, const std::vector<float> & values) {
    common_json result = common_json::object();
    for (size_t i = 0; i < values.size(); ++i) {
        const char * name = llama_so8t_get_label(model, i_head, i).name;
        if (std::isfinite(values[i])) {
            result[name] = values[i];
        } else {
            result[name] = nullptr;
        }
    }
    return result;
}

void so8t_guard::write(const part_state & part, bool is_answer, common_json & result) const {
    result["action"] = llama_so8t_action_name(part.action);
    if (is_answer) {
        result["n_positions"] = part.n_positions;
    }
    common_json heads = common_json::object();
    for (size_t i = 0; i < part.heads.size(); ++i) {
        const auto & state = part.heads[i];
        if (state.probs.empty()) {
            continue;
        }
        const auto best = std::max_element(state.probs.begin(), state.probs.end()) - state.probs.begin();

        common_json head = common_json::object();
        head["label"]         = llama_so8t_get_label(model, i, best).name;
        head["probabilities"] = so8t_probabilities(model, i, state.probs);
        if (is_answer) {
            head["peak"]      = so8t_probabilities(model, i, state.peak);
            head["triggered"] = nullptr;
            if (state.label >= 0) {
                head["triggered"] = common_json::object({
                    {"position", state.position},
                    {"label",    llama_so8t_get_label(model, i, state.label).name},
                });
            }
        }
        heads[llama_so8t_get_head(model, i).name] = head;
    }
    result["heads"] = heads;
}

common_json so8t_guard::end() {
    if (!model) {
        return nullptr;
    }
    common_json prompt_json = common_json::object();
    common_json answer_json = common_json::object();
    write(prompt, false, prompt_json);
    write(answer, true,  answer_json);

    common_json result = common_json::object();
    result["decision"] = llama_so8t_action_name(decision());
    result["prompt"]   = prompt_json;
    result["answer"]   = answer_json;
    begin();
    return result;
}
