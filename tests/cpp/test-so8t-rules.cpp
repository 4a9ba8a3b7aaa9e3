// the rule against its table of cases, and argmax against the original formula: usage: test-so8t-rules verdict_rule.json

#include "so8t-rules.h"

#include "json.h"

#include <cmath>
#include <cstdio>
#include <fstream>
#include <random>
#include <sstream>
#include <string>
#include <vector>

struct test_head {
    std::string name;
    std::vector<std::string> labels;
    so8t_head_rule rule;

    std::vector<int32_t> n_above;
    int32_t position = -1; // where a label first triggered
    int32_t label    = -1;
};

static llama_so8t_action action_of(const std::string & name) {
    return name == "refuse"   ? LLAMA_SO8T_ACTION_REFUSE :
           name == "escalate" ? LLAMA_SO8T_ACTION_ESCALATE :
                                LLAMA_SO8T_ACTION_ALLOW;
}

static std::vector<test_head> heads_of(const common_json & given) {
    std::vector<test_head> heads;
    for (const auto & [name, head] : given.items()) {
        test_head result;
        result.name             = name;
        result.rule.fitted      = head.value("fitted", true);
        result.rule.debounce    = head.at("debounce").get<int32_t>();
        result.rule.rule        = head.value("rule", std::string("threshold")) == "argmax" ? LLAMA_SO8T_RULE_ARGMAX :
                                                                                             LLAMA_SO8T_RULE_THRESHOLD;
        const std::string scope = head.at("scope").get<std::string>();
        result.rule.scope       = scope == "prompt" ? LLAMA_SO8T_SCOPE_PROMPT :
                                  scope == "answer" ? LLAMA_SO8T_SCOPE_ANSWER :
                                                      LLAMA_SO8T_SCOPE_BOTH;
        for (size_t i = 0; i < head.at("labels").size(); ++i) {
            result.labels.push_back(head.at("labels").at(i).get<std::string>());
            result.rule.actions.push_back(action_of(head.at("actions").at(i).get<std::string>()));
            result.rule.thresholds.push_back(head.at("thresholds").at(i).get<float>());
        }
        heads.push_back(result);
    }
    return heads;
}

// adds what was found to an object
static void add_found(common_json & row, const std::vector<test_head> & heads, const so8t_found & found) {
    row["action"] = llama_so8t_action_name(found.action);
    row["head"]   = nullptr;
    row["label"]  = nullptr;
    if (found.head >= 0) {
        row["head"] = heads[found.head].name;
        if (found.label >= 0) {
            row["label"] = heads[found.head].labels[found.label];
        }
    }
}

// what the code says of a case, in the form of "expected"
static common_json judged(const common_json & given) {
    std::vector<test_head> heads = heads_of(given.at("heads"));
    const bool is_prompt         = given.at("part").get<std::string>() == "prompt";

    common_json positions = common_json::array();
    common_json decision  = nullptr;
    so8t_found strongest;
    for (size_t position = 0; position < given.at("positions").size(); ++position) {
        common_json reached    = common_json::object();
        const so8t_found found = so8t_judge(heads.size(), [&](int32_t i) -> so8t_found {
            auto & head = heads[i];
            if (!so8t_in_scope(head.rule.scope, is_prompt)) {
                return {};
            }
            const common_json & values = given.at("positions").at(position).at(head.name);
            std::vector<float> probs(head.labels.size(), NAN);
            for (size_t j = 0; j < probs.size() && !values.is_null(); ++j) {
                probs[j] = values.at(j).get<float>();
            }
            const so8t_found result = so8t_judge_head(head.rule, is_prompt, probs.data(), head.n_above);
            reached[head.name]      = nullptr;
            if (!values.is_null()) {
                reached[head.name] = common_json::array();
                for (size_t j = 0; j < probs.size(); ++j) {
                    if (head.rule.actions[j] != LLAMA_SO8T_ACTION_ALLOW && head.n_above[j] > 0) {
                        reached[head.name].push_back(head.labels[j]);
                    }
                }
            }
            if (head.label < 0) {
                head.label    = so8t_first_label(head.rule, is_prompt, head.n_above);
                head.position = head.label < 0 ? -1 : (int32_t) position;
            }
            return result;
        });

        common_json row = common_json::object({{"reached", reached}});
        add_found(row, heads, found);
        positions.push_back(row);
        if (found.action > strongest.action) {
            strongest = found;
            decision  = common_json::object({{"position", position}});
            add_found(decision, heads, found);
        }
    }
    common_json triggered = common_json::object();
    for (const auto & head : heads) {
        if (so8t_in_scope(head.rule.scope, is_prompt)) {
            triggered[head.name] = nullptr;
            if (head.label >= 0) {
                triggered[head.name] = common_json::object(
                    {{"position", head.position}, {"label", head.labels[head.label]}});
            }
        }
    }
    return common_json::object({{"positions", positions}, {"decision", decision}, {"triggered", triggered}});
}

// The authors of Qwen3Guard take argmax(softmax(logits)): the largest, and of equal ones the first. 60000 heads of random
// logits, a third of them with few values, so that many are equal, and some not finite.
static int count_unlike_original() {
    std::mt19937 random(13);
    std::normal_distribution<float> spread(0.0f, 3.0f);
    const float not_finite[] = {NAN, INFINITY, -INFINITY};
    int n_unlike             = 0;
    for (int trial = 0; trial < 60000; ++trial) {
        const size_t n_labels   = 2 + random() % 8;
        const float temperature = std::vector<float>{0.5f, 1.0f, 3.0f}[random() % 3];
        std::vector<float> logits(n_labels);
        so8t_head_rule rule;
        rule.rule = LLAMA_SO8T_RULE_ARGMAX;
        for (auto & logit : logits) {
            logit = trial % 3 == 0 ? (float) (random() % 4) : spread(random);
            rule.actions.push_back((llama_so8t_action) (random() % 3));
            rule.thresholds.push_back((random() % 101) * 0.01f);
        }
        const bool is_finite = random() % 20 != 0;
        if (!is_finite) {
            logits[random() % n_labels] = not_finite[random() % 3];
        }
        size_t label = 0; // of the original
        for (size_t i = 1; i < n_labels; ++i) {
            label = logits[i] > logits[label] ? i : label;
        }
        const llama_so8t_action action = is_finite ? rule.actions[label] : LLAMA_SO8T_ACTION_REFUSE;
        const bool has_label           = is_finite && action != LLAMA_SO8T_ACTION_ALLOW;

        std::vector<float> probs(n_labels);
        std::vector<int32_t> n_above;
        so8t_probabilities(logits.data(), n_labels, temperature, LLAMA_SO8T_LINK_SOFTMAX, probs.data());
        const so8t_found found  = so8t_judge_head(rule, true, probs.data(), n_above);
        n_unlike               += found.action != action || found.label != (has_label ? (int32_t) label : -1) ||
                                  so8t_largest(probs.data(), n_labels) != (is_finite ? (int32_t) label : -1);
    }
    return n_unlike;
}

// sigmoid of each label by itself: log(odds) * temperature gives the probability of these odds
static int count_wrong_links() {
    const std::vector<float> logits = {0.0f, 2 * std::log(3.0f), 2 * std::log(1.0f / 3), 1e30f, -1e30f};
    const std::vector<float> known  = {0.5f, 0.75f, 0.25f, 1.0f, 0.0f};
    std::vector<float> probs(logits.size());
    int n_wrong = !so8t_probabilities(logits.data(), logits.size(), 2.0f, LLAMA_SO8T_LINK_SIGMOID, probs.data());
    for (size_t i = 0; i < known.size(); ++i) {
        n_wrong += !(std::fabs(probs[i] - known[i]) <= 1e-6f);
    }
    const float bad[]  = {1.0f, INFINITY};
    n_wrong           += so8t_probabilities(bad, 2, 1.0f, LLAMA_SO8T_LINK_SIGMOID, probs.data());
    n_wrong           += !std::isnan(probs[0]) || !std::isnan(probs[1]);
    return n_wrong;
}

int main(int argc, char ** argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: %s verdict_rule.json\n", argv[0]);
        return 1;
    }
    std::stringstream text;
    text << std::ifstream(argv[1]).rdbuf();

    int n_passed = 0;
    int n_failed = 0;

    const common_json golden = common_json::parse(text.str());
    for (const auto & given : golden.at("cases")) {
        const std::string found    = judged(given).dump();
        const std::string expected = given.at("expected").dump();
        (found == expected ? n_passed : n_failed)++;
        if (found != expected) {
            fprintf(stderr, "FAIL %s:\nfound    %s\nexpected %s\n", given.at("name").get<std::string>().c_str(),
                found.c_str(), expected.c_str());
        }
    }
    const int n_unlike = count_unlike_original();
    const int n_wrong  = count_wrong_links();
    printf(
        "%d passed, %d failed; %d verdicts by argmax are unlike the original; %d probabilities by sigmoid are wrong\n",
        n_passed, n_failed, n_unlike, n_wrong);
    return n_failed == 0 && n_unlike == 0 && n_wrong == 0 ? 0 : 1;
}
