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

static int n_wrong_probs = 0;

struct test_head {
    std::string name;
    std::vector<std::string> labels;
    so8t_head_rule rule;

    so8t_head_run run;
    int32_t position = -1; // where a label first triggered
    int32_t label    = -1;
};

static llama_so8t_action action_of(const std::string & name) {
    return name == "refuse"   ? LLAMA_SO8T_ACTION_REFUSE :
           name == "escalate" ? LLAMA_SO8T_ACTION_ESCALATE :
                                LLAMA_SO8T_ACTION_ALLOW;
}

static llama_so8t_aggregation aggregation_of(const std::string & name) {
    for (const auto aggregation : {LLAMA_SO8T_AGGREGATION_WINDOW, LLAMA_SO8T_AGGREGATION_EMA,
             LLAMA_SO8T_AGGREGATION_MEAN, LLAMA_SO8T_AGGREGATION_MAX}) {
        if (name == llama_so8t_aggregation_name(aggregation)) {
            return aggregation;
        }
    }
    return LLAMA_SO8T_AGGREGATION_RUN;
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
        result.rule.aggregation = aggregation_of(head.value("aggregation", std::string("run")));
        result.rule.ema_alpha   = head.value("ema_alpha", 1.0f);
        result.rule.window      = head.value("window", 1);
        result.rule.temperature = head.value("temperature", 1.0f);
        result.rule.link        = head.value("link", std::string("softmax")) == "sigmoid" ? LLAMA_SO8T_LINK_SIGMOID :
                                                                                            LLAMA_SO8T_LINK_SOFTMAX;
        const std::string other = head.value("depends_on", std::string());
        for (size_t i = 0; i < heads.size(); ++i) {
            result.rule.depends_on = heads[i].name == other ? (int32_t) i : result.rule.depends_on;
        }
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

// a row of a case, NaN where it is null
static std::vector<float> row_of(const common_json & values, size_t n) {
    std::vector<float> row(n, NAN);
    for (size_t i = 0; i < n && !values.is_null(); ++i) {
        row[i] = values.at(i).get<float>();
    }
    return row;
}

// probabilities of a head at a position: those of the case, or its aggregated logits, which have to be those of the case
static std::vector<float> probs_of(const common_json & given, size_t position, test_head & head) {
    const std::vector<float> known = row_of(given.at("positions").at(position).at(head.name), head.labels.size());
    if (!given.contains("logits") || !given.at("logits").at(position).contains(head.name)) {
        return known;
    }
    const std::vector<float> logits = row_of(given.at("logits").at(position).at(head.name), head.labels.size());
    std::vector<float> probs(known.size());
    const bool is_finite = so8t_aggregate(head.rule, logits.data(), head.run, probs.data());
    for (size_t i = 0; i < probs.size(); ++i) {
        if (is_finite != std::isfinite(known[i]) || (is_finite && !(std::fabs(probs[i] - known[i]) <= 2e-6f))) {
            fprintf(stderr, "FAIL %s: position %zu of %s has %g for %s, expected %g\n",
                given.at("name").get<std::string>().c_str(), position, head.name.c_str(), (double) probs[i],
                head.labels[i].c_str(), (double) known[i]);
            n_wrong_probs++;
        }
    }
    return probs;
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
        const auto depends_on  = [&](int32_t i) { return heads[i].rule.depends_on; };
        const so8t_found found = so8t_judge(heads.size(), depends_on, [&](int32_t i) -> so8t_found {
            auto & head = heads[i];
            if (!so8t_in_scope(head.rule.scope, is_prompt)) {
                return {};
            }
            const std::vector<float> probs = probs_of(given, position, head);
            const so8t_found result        = so8t_judge_head(head.rule, is_prompt, position, probs.data(), head.run);
            reached[head.name]             = nullptr;
            if (std::isfinite(probs[0])) {
                reached[head.name] = common_json::array();
                for (size_t j = 0; j < probs.size(); ++j) {
                    if (head.rule.actions[j] != LLAMA_SO8T_ACTION_ALLOW && head.run.holds[j]) {
                        reached[head.name].push_back(head.labels[j]);
                    }
                }
            }
            if (head.label < 0) {
                head.label    = so8t_first_label(head.rule, is_prompt, head.run);
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
        so8t_head_run run;
        so8t_probabilities(logits.data(), n_labels, temperature, LLAMA_SO8T_LINK_SOFTMAX, probs.data());
        const so8t_found found  = so8t_judge_head(rule, true, 0, probs.data(), run);
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
    printf("%d passed, %d failed; %d verdicts by argmax are unlike the original; %d probabilities by sigmoid and %d of "
           "aggregated logits are wrong\n",
        n_passed, n_failed, n_unlike, n_wrong, n_wrong_probs);
    return n_failed == 0 && n_unlike == 0 && n_wrong == 0 && n_wrong_probs == 0 ? 0 : 1;
}
