// the rule against its table of cases: usage: test-so8t-rules verdict_rule.json

#include "so8t-rules.h"

#include "json.h"

#include <cmath>
#include <cstdio>
#include <fstream>
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
        result.rule.debounce    = head.at("debounce").get<int32_t>();
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
            reached[head.name] = nullptr;
            if (!values.is_null()) {
                reached[head.name] = common_json::array();
                for (size_t j = 0; j < probs.size(); ++j) {
                    probs[j] = values.at(j).get<float>();
                    if (head.rule.actions[j] != LLAMA_SO8T_ACTION_ALLOW &&
                        so8t_reached(probs[j], head.rule.thresholds[j])) {
                        reached[head.name].push_back(head.labels[j]);
                    }
                }
            }
            const so8t_found result = so8t_judge_head(head.rule, is_prompt, probs.data(), head.n_above);
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
    printf("%d passed, %d failed\n", n_passed, n_failed);
    return n_failed == 0 ? 0 : 1;
}
