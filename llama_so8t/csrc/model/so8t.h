#pragma once

#include "llama.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

//
// Classification heads: a verdict at every output position, computed in the graph beside the logits.
//
// A model without heads has llama_so8t_n_heads() == 0 and costs nothing. Heads and labels are indexed
// in the order of the file. Strings live as long as the model.
//

// in rising order: the strongest action of all heads wins
enum llama_so8t_action {
    LLAMA_SO8T_ACTION_ALLOW    = 0,
    LLAMA_SO8T_ACTION_ESCALATE = 1,
    LLAMA_SO8T_ACTION_REFUSE   = 2,
};

enum llama_so8t_scope {
    LLAMA_SO8T_SCOPE_PROMPT = 1,
    LLAMA_SO8T_SCOPE_ANSWER = 2,
    LLAMA_SO8T_SCOPE_BOTH   = 3, // = PROMPT | ANSWER
};

enum llama_so8t_rule {
    LLAMA_SO8T_RULE_THRESHOLD = 0, // a label acts where its probability is at or above its threshold
    LLAMA_SO8T_RULE_ARGMAX    = 1, // the label with the largest probability acts, the first of equal ones
};

enum llama_so8t_link {
    LLAMA_SO8T_LINK_SOFTMAX = 0, // one label of the head holds
    LLAMA_SO8T_LINK_SIGMOID = 1, // each label holds or not by itself
};

enum llama_so8t_form {
    LLAMA_SO8T_FORM_LINEAR    = 0,
    LLAMA_SO8T_FORM_MLP       = 1, // behind a stem
    LLAMA_SO8T_FORM_ATTENTION = 2, // behind a stem that looks back at every token
};

enum llama_so8t_tap_norm {
    LLAMA_SO8T_TAP_NORM_NONE = 0,
    LLAMA_SO8T_TAP_NORM_RMS  = 1, // without a weight
};

// how the positions of an answer are combined (docs/format.md has the formulas)
enum llama_so8t_aggregation {
    LLAMA_SO8T_AGGREGATION_RUN    = 0, // not: a label has to hold at consecutive positions
    LLAMA_SO8T_AGGREGATION_WINDOW = 1, // not: a label has to hold at some of the last positions
    LLAMA_SO8T_AGGREGATION_EMA    = 2,
    LLAMA_SO8T_AGGREGATION_MEAN   = 3,
    LLAMA_SO8T_AGGREGATION_MAX    = 4,
};

// how a prompt is read: at a token, or over a text of the user
enum llama_so8t_prompt_aggregation {
    LLAMA_SO8T_PROMPT_AGGREGATION_TOKEN    = 0,
    LLAMA_SO8T_PROMPT_AGGREGATION_MEAN     = 1,
    LLAMA_SO8T_PROMPT_AGGREGATION_EMA      = 2,
    LLAMA_SO8T_PROMPT_AGGREGATION_MAX      = 3,
    LLAMA_SO8T_PROMPT_AGGREGATION_WINDOW8  = 4, // the largest of the means of 8 tokens
    LLAMA_SO8T_PROMPT_AGGREGATION_WINDOW16 = 5,
};

enum llama_so8t_representation {
    LLAMA_SO8T_REPRESENTATION_VECTOR       = 0,
    LLAMA_SO8T_REPRESENTATION_SPINOR_PLUS  = 1,
    LLAMA_SO8T_REPRESENTATION_SPINOR_MINUS = 2,
};

struct llama_so8t_head {
    const char * name;
    int32_t n_labels;
    float temperature; // probabilities are link(logits/temperature)
    int32_t debounce;  // consecutive positions that must agree while generating
    enum llama_so8t_scope scope;
    llama_token prompt_token; // the prompt verdict is read at the last such token, LLAMA_TOKEN_NULL: at the last token
    enum llama_so8t_representation representation; // of the rotation that is folded into the weights
    enum llama_so8t_rule rule;                     // by which its labels act
    bool fitted; // false: all of its weights are zeros, as so8t init writes them, so it does not act
    enum llama_so8t_form form;
    enum llama_so8t_link link;
    // what it reads, one behind the other: k is the residual stream that enters layer k, the number of layers its end,
    // -1 the final norm
    const int32_t * taps;
    int32_t n_taps;
    enum llama_so8t_tap_norm tap_norm; // of each tap

    int32_t sliding_window; // of the form attention: tokens that a token sees, 0: all before it

    enum llama_so8t_aggregation aggregation; // of the positions of an answer
    float ema_alpha;                         // of ema: weight of the newest position
    int32_t window;                          // of the aggregation window: positions

    // how a prompt is read, and for each of these ways the threshold of each label
    const enum llama_so8t_prompt_aggregation * prompt_aggregations;
    int32_t n_prompt_aggregations;
    const float * prompt_thresholds;

    int32_t depends_on; // the head is asked where a label of this head has an action other than allow; -1: everywhere
};

struct llama_so8t_label {
    const char * name;
    float threshold; // a probability at or above it triggers the action; not used by the rule argmax
    enum llama_so8t_action action;
};

// adds the heads of a heads file to a model that they were fitted on, before a context of it is made. False, and an error
// in the log, where the file is damaged, belongs to another base, or has a head with the name of one that is there.
LLAMA_API bool llama_so8t_load_heads(struct llama_model * model, const char * path);

LLAMA_API int32_t llama_so8t_n_heads(const struct llama_model * model);
LLAMA_API struct llama_so8t_head llama_so8t_get_head(const struct llama_model * model, int32_t head);
LLAMA_API struct llama_so8t_label llama_so8t_get_label(const struct llama_model * model, int32_t head, int32_t label);

LLAMA_API const char * llama_so8t_action_name(enum llama_so8t_action action);
LLAMA_API const char * llama_so8t_rule_name(enum llama_so8t_rule rule);
LLAMA_API const char * llama_so8t_link_name(enum llama_so8t_link link);
LLAMA_API const char * llama_so8t_form_name(enum llama_so8t_form form);
LLAMA_API const char * llama_so8t_tap_norm_name(enum llama_so8t_tap_norm norm);
LLAMA_API const char * llama_so8t_aggregation_name(enum llama_so8t_aggregation aggregation);
LLAMA_API const char * llama_so8t_prompt_aggregation_name(enum llama_so8t_prompt_aggregation aggregation);
LLAMA_API const char * llama_so8t_representation_name(enum llama_so8t_representation representation);

// logits of one head at output i (indexed as llama_get_logits_ith: batch position, or negative from the
// end), n_labels floats, valid until the next decode. NULL where the position is no output.
LLAMA_API const float * llama_so8t_get_logits_ith(struct llama_context * ctx, int32_t head, int32_t i);

// probabilities of one head at output i, into n_labels floats. False where the position is no output or
// a logit is not finite; the probabilities are then NaN.
LLAMA_API bool llama_so8t_get_probs_ith(struct llama_context * ctx, int32_t head, int32_t i, float * probs);

// probabilities of one head over a text of a prompt, by one of its prompt_aggregations but for TOKEN: over the positions
// [p0, p1) of the sequence of output i, into n_labels floats. False, and NaN, where one of them has no finite values, or
// there is no such aggregation.
LLAMA_API bool llama_so8t_get_text_probs(struct llama_context * ctx, int32_t head, int32_t aggregation, int32_t i,
    llama_pos p0, llama_pos p1, float * probs);

// the verdict of all heads at output i: refuse > escalate > allow. A refusal by one head is final: of the later heads only
// those that depend on it are consulted. A head without finite values refuses (fail closed). Nothing is aggregated: each
// head is judged by its thresholds at this one position.
LLAMA_API enum llama_so8t_action llama_so8t_get_action_ith(struct llama_context * ctx, int32_t i);

//
// Rotations. A model is loaded only if all of them are in SO(8).
//

struct llama_so8t_rotation {
    const char * site;
    bool folded; // into the weights, otherwise a step of the graph
};

LLAMA_API int32_t llama_so8t_n_rotations(const struct llama_model * model);
LLAMA_API struct llama_so8t_rotation llama_so8t_get_rotation(const struct llama_model * model, int32_t rotation);

#ifdef __cplusplus
}
#endif
