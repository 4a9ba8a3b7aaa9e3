#pragma once

#include <stdbool.h>
#include <stdint.h>

// One model and one context behind a flat C interface, for bindings by foreign function (llama_so8t/bindings).
// No struct of llama.cpp crosses it, so the bindings survive upstream changes. No function aborts on bad input:
// errors come back as null or non-zero, with a text in so8t_session_error().

#ifdef __cplusplus
extern "C" {
#endif

#define SO8T_SESSION_VERSION 5

struct so8t_session;

struct so8t_session_params {
    uint32_t version; // SO8T_SESSION_VERSION
    uint32_t n_ctx;
    uint32_t n_batch;
    uint32_t n_ubatch;
    uint32_t n_seq_max;
    int32_t n_threads;
    int32_t n_gpu_layers;
    int32_t flash_attn; // -1 auto, 0 off, 1 on
    int32_t type_k;     // ggml_type of the KV cache
    int32_t type_v;
    bool embeddings;    // every token is an output and has an embedding
    bool kv_unified;    // one KV cache for all sequences, which share its cells
    int32_t split_mode; // llama_split_mode: how the devices share the model
    const char * rpc;   // "host:port,host:port": these RPC servers are the devices; null: the devices of this machine
    const float * tensor_split; // share of each device, n_tensor_split of them; null: by free memory
    int32_t n_tensor_split;
    int32_t observe;            // nodes of the graph: 0 no, 1 as they are, 2 each computed alone and timed
    const char * const * heads; // n_heads paths of heads files that the model gets
    int32_t n_heads;
};

// one node of the graph of the last evaluation, in the order of the computation
struct so8t_session_node {
    const char * op;
    const char * name;    // of the result
    const char * operand; // name of the first operand, "" without one: the weight of a MUL_MAT
    int32_t hint;         // ggml_op_hint of a MUL_MAT, else 0
    double seconds;       // with starting and joining the threads; 0 unless timed
};

// the text of the last error of this thread, never null
const char * so8t_session_error(void);

struct so8t_session * so8t_session_init(const char * path, const struct so8t_session_params * params);
void so8t_session_free(struct so8t_session * session);

int32_t so8t_session_n_vocab(const struct so8t_session * session);
int32_t so8t_session_n_embd(const struct so8t_session * session);
int32_t so8t_session_n_heads(const struct so8t_session * session);

// null or 0 for an index out of range
const char * so8t_session_head_name(const struct so8t_session * session, int32_t head);
int32_t so8t_session_head_n_labels(const struct so8t_session * session, int32_t head);
const char * so8t_session_label_name(const struct so8t_session * session, int32_t head, int32_t label);

// text to tokens; returns the number of tokens, or minus the number needed when n_max is too small
int32_t so8t_session_tokenize(
    const struct so8t_session * session, const char * text, bool add_special, int32_t * tokens, int32_t n_max);

// evaluates n tokens with their positions and sequences; outputs: which of them have values, null: all; 0 on success
int32_t so8t_session_decode(struct so8t_session * session, const int32_t * tokens, const int32_t * positions,
    const int32_t * sequences, const bool * outputs, int32_t n);

// evaluates n tokens after those of sequence 0, in one batch or one by one, only the last of a batch an output:
// the tests pp and tg of llama-bench; returns seconds, or -1 on failure
double so8t_session_time(struct so8t_session * session, const int32_t * tokens, int32_t n, bool one_by_one);

void so8t_session_set_threads(struct so8t_session * session, int32_t n_threads);

// what the last decode or time has computed; needs params.observe
int64_t so8t_session_n_nodes(const struct so8t_session * session);
bool so8t_session_get_node(const struct so8t_session * session, int64_t i, struct so8t_session_node * node);

// of the i-th token of the last decode; null where there is none
const float * so8t_session_logits(struct so8t_session * session, int32_t i);
const float * so8t_session_embedding(struct so8t_session * session, int32_t i);
const float * so8t_session_head_logits(struct so8t_session * session, int32_t head, int32_t i);

// probabilities of a head over positions [p0, p1) of the sequence of the i-th token of the last decode, by one of its
// prompt aggregations; false where there are none
bool so8t_session_text_probs(
    struct so8t_session * session, int32_t head, int32_t aggregation, int32_t i, int32_t p0, int32_t p1, float * probs);

// gives positions [p0, p1) of a sequence (p1 < 0: to the end) to another one as well
void so8t_session_copy(struct so8t_session * session, int32_t from, int32_t to, int32_t p0, int32_t p1);

// forgets positions [p0, p1) of a sequence (p1 < 0: to the end), then moves what follows by delta
bool so8t_session_forget(struct so8t_session * session, int32_t sequence, int32_t p0, int32_t p1, int32_t delta);

// the whole state, or that of a sequence (-1: all), as bytes: size, copy out, copy in; 0 on failure
uint64_t so8t_session_state_size(struct so8t_session * session, int32_t sequence);
uint64_t so8t_session_state_get(struct so8t_session * session, int32_t sequence, uint8_t * dst, uint64_t size);
uint64_t so8t_session_state_set(struct so8t_session * session, int32_t sequence, const uint8_t * src, uint64_t size);

// applies a LoRA adapter file with this scale; 0 on success
int32_t so8t_session_lora(struct so8t_session * session, const char * path, float scale);

#ifdef __cplusplus
}
#endif
