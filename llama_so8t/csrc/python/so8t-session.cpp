#include "so8t-session.h"

#include "so8t.h"

#include "llama.h"

#include <algorithm>
#include <chrono>
#include <sstream>
#include <string>
#include <vector>

struct so8t_node {
    const char * op;
    std::string name;
    std::string operand;
    int32_t hint;
    double seconds;
};

struct so8t_session {
    llama_model * model       = nullptr;
    llama_context * ctx       = nullptr;
    llama_adapter_lora * lora = nullptr;

    std::vector<so8t_node> nodes; // of the last evaluation
    bool is_timed = false;
    double t_start; // of the node under way

    ~so8t_session() {
        llama_free(ctx);
        llama_model_free(model);
    }
};

static thread_local std::string so8t_error;

static void so8t_log(ggml_log_level level, const char * text, void * /*user_data*/) {
    if (level == GGML_LOG_LEVEL_ERROR) {
        so8t_error += text;
    }
}

// seconds; ggml_time_us is too coarse for a node
static double so8t_now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// ggml_backend_sched_eval_callback: asked before a node, and after it where the answer was true
static bool so8t_observe(ggml_tensor * t, bool ask, void * data) {
    auto & session = *(so8t_session *) data;
    if (!ask) {
        session.nodes.back().seconds = so8t_now() - session.t_start;
        return true;
    }
    const int32_t hint = t->op == GGML_OP_MUL_MAT ? t->op_params[1] : 0;
    session.nodes.push_back({ggml_op_name(t->op), t->name, t->src[0] ? t->src[0]->name : "", hint, 0.0});
    session.t_start = so8t_now();
    return session.is_timed;
}

static int32_t so8t_fail(const char * text) {
    so8t_error += text;
    return 1;
}

const char * so8t_session_error(void) {
    return so8t_error.c_str();
}

// devices of the RPC servers "host:port,host:port", null at the end; empty where one cannot be used. They are not
// registered, so that later sessions do not use them unasked.
static std::vector<ggml_backend_dev_t> so8t_rpc_devices(const std::string & servers) {
    ggml_backend_reg_t rpc = ggml_backend_reg_by_name("RPC");
    auto add_server        = rpc ? (ggml_backend_reg_t (*)(const char *)) ggml_backend_reg_get_proc_address(
                                       rpc, "ggml_backend_rpc_add_server") :
                                   nullptr;

    std::vector<ggml_backend_dev_t> result;
    std::istringstream list(servers);
    for (std::string endpoint; std::getline(list, endpoint, ',');) {
        ggml_backend_reg_t reg = add_server ? add_server(endpoint.c_str()) : nullptr;
        if (!reg) {
            so8t_error += add_server ? "no RPC server can be used at " + endpoint : "the RPC backend is not built in";
            return {};
        }
        for (size_t i = 0; i < ggml_backend_reg_dev_count(reg); ++i) {
            result.push_back(ggml_backend_reg_dev_get(reg, i));
        }
    }
    result.push_back(nullptr);
    return result;
}

so8t_session * so8t_session_init(const char * path, const so8t_session_params * params) {
    so8t_error.clear();
    if (params->version != SO8T_SESSION_VERSION) {
        so8t_fail("so8t-session: the library and its caller are of different versions");
        return nullptr;
    }
    llama_log_set(so8t_log, nullptr);
    llama_backend_init();
    ggml_backend_load_all();

    llama_model_params mparams = llama_model_default_params();
    mparams.n_gpu_layers       = params->n_gpu_layers;
    mparams.split_mode         = (llama_split_mode) params->split_mode;

    std::vector<ggml_backend_dev_t> devices;
    if (params->rpc) {
        devices = so8t_rpc_devices(params->rpc);
        if (devices.empty()) {
            return nullptr;
        }
        mparams.devices = devices.data();
    }
    std::vector<float> tensor_split(llama_max_devices());
    if (params->tensor_split) {
        std::copy_n(
            params->tensor_split, std::min<size_t>(params->n_tensor_split, tensor_split.size()), tensor_split.begin());
        mparams.tensor_split = tensor_split.data();
    }

    auto * session = new so8t_session;
    session->model = llama_model_load_from_file(path, mparams);

    for (int32_t i = 0; session->model && i < params->n_heads; ++i) {
        if (!llama_so8t_load_heads(session->model, params->heads[i])) {
            delete session;
            return nullptr;
        }
    }
    if (session->model) {
        llama_context_params cparams = llama_context_default_params();
        cparams.n_ctx                = params->n_ctx;
        cparams.n_batch              = params->n_batch;
        cparams.n_ubatch             = params->n_ubatch;
        cparams.n_seq_max            = params->n_seq_max;
        cparams.n_threads            = params->n_threads;
        cparams.n_threads_batch      = params->n_threads;
        cparams.flash_attn_type      = (llama_flash_attn_type) params->flash_attn;
        cparams.type_k               = (ggml_type) params->type_k;
        cparams.type_v               = (ggml_type) params->type_v;
        cparams.embeddings           = params->embeddings;
        cparams.kv_unified           = params->kv_unified;
        if (params->observe != 0) {
            cparams.cb_eval           = so8t_observe;
            cparams.cb_eval_user_data = session;
            session->is_timed         = params->observe == 2;
        }
        session->ctx = llama_init_from_model(session->model, cparams);
    }
    if (!session->ctx) {
        delete session;
        return nullptr;
    }
    return session;
}

void so8t_session_free(so8t_session * session) {
    delete session;
}

int32_t so8t_session_n_vocab(const so8t_session * session) {
    return llama_vocab_n_tokens(llama_model_get_vocab(session->model));
}

int32_t so8t_session_n_embd(const so8t_session * session) {
    return llama_model_n_embd(session->model);
}

int32_t so8t_session_n_heads(const so8t_session * session) {
    return llama_so8t_n_heads(session->model);
}

static bool so8t_has_head(const so8t_session * session, int32_t head) {
    return head >= 0 && head < llama_so8t_n_heads(session->model);
}

const char * so8t_session_head_name(const so8t_session * session, int32_t head) {
    return so8t_has_head(session, head) ? llama_so8t_get_head(session->model, head).name : nullptr;
}

int32_t so8t_session_head_n_labels(const so8t_session * session, int32_t head) {
    return so8t_has_head(session, head) ? llama_so8t_get_head(session->model, head).n_labels : 0;
}

const char * so8t_session_label_name(const so8t_session * session, int32_t head, int32_t label) {
    return label >= 0 && label < so8t_session_head_n_labels(session, head) ?
               llama_so8t_get_label(session->model, head, label).name :
               nullptr;
}

int32_t so8t_session_tokenize(
    const so8t_session * session, const char * text, bool add_special, int32_t * tokens, int32_t n_max) {
    return llama_tokenize(llama_model_get_vocab(session->model), text, (int32_t) std::string(text).size(), tokens,
        n_max, add_special, true);
}

int32_t so8t_session_decode(so8t_session * session, const int32_t * tokens, const int32_t * positions,
    const int32_t * sequences, const bool * outputs, int32_t n) {
    so8t_error.clear();
    if (n < 1 || n > (int32_t) llama_n_batch(session->ctx)) {
        return so8t_fail("so8t_session_decode: the number of tokens is not between 1 and n_batch");
    }
    for (int32_t i = 0; i < n; ++i) {
        if (tokens[i] < 0 || tokens[i] >= so8t_session_n_vocab(session) || sequences[i] < 0 ||
            sequences[i] >= (int32_t) llama_n_seq_max(session->ctx)) {
            return so8t_fail("so8t_session_decode: a token or sequence id is out of range");
        }
    }
    llama_batch batch = llama_batch_init(n, 0, 1);
    batch.n_tokens    = n;
    for (int32_t i = 0; i < n; ++i) {
        batch.token[i]     = tokens[i];
        batch.pos[i]       = positions[i];
        batch.n_seq_id[i]  = 1;
        batch.seq_id[i][0] = sequences[i];
        batch.logits[i]    = !outputs || outputs[i];
    }
    session->nodes.clear();
    const int32_t status = llama_decode(session->ctx, batch);
    llama_batch_free(batch);
    return status;
}

double so8t_session_time(so8t_session * session, const int32_t * tokens, int32_t n, bool one_by_one) {
    so8t_error.clear();
    std::vector<llama_token> copy(tokens, tokens + n);
    session->nodes.clear();

    const int32_t n_batch = one_by_one ? 1 : n;
    const double t_start  = so8t_now();
    for (int32_t i = 0; i < n; i += n_batch) {
        if (llama_decode(session->ctx, llama_batch_get_one(copy.data() + i, n_batch)) != 0) {
            return -1.0;
        }
        llama_synchronize(session->ctx);
    }
    return so8t_now() - t_start;
}

void so8t_session_set_threads(so8t_session * session, int32_t n_threads) {
    llama_set_n_threads(session->ctx, n_threads, n_threads);
}

int64_t so8t_session_n_nodes(const so8t_session * session) {
    return session->nodes.size();
}

bool so8t_session_get_node(const so8t_session * session, int64_t i, so8t_session_node * node) {
    if (i < 0 || i >= so8t_session_n_nodes(session)) {
        return false;
    }
    const auto & n = session->nodes[i];
    *node          = {n.op, n.name.c_str(), n.operand.c_str(), n.hint, n.seconds};
    return true;
}

const float * so8t_session_logits(so8t_session * session, int32_t i) {
    return llama_get_logits_ith(session->ctx, i);
}

const float * so8t_session_embedding(so8t_session * session, int32_t i) {
    return llama_get_embeddings_ith(session->ctx, i);
}

const float * so8t_session_head_logits(so8t_session * session, int32_t head, int32_t i) {
    return so8t_has_head(session, head) ? llama_so8t_get_logits_ith(session->ctx, head, i) : nullptr;
}

bool so8t_session_text_probs(
    so8t_session * session, int32_t head, int32_t aggregation, int32_t i, int32_t p0, int32_t p1, float * probs) {
    return so8t_has_head(session, head) && llama_so8t_get_text_probs(session->ctx, head, aggregation, i, p0, p1, probs);
}

void so8t_session_copy(so8t_session * session, int32_t from, int32_t to, int32_t p0, int32_t p1) {
    llama_memory_seq_cp(llama_get_memory(session->ctx), from, to, p0, p1);
}

bool so8t_session_forget(so8t_session * session, int32_t sequence, int32_t p0, int32_t p1, int32_t delta) {
    llama_memory_t memory = llama_get_memory(session->ctx);
    if (!llama_memory_seq_rm(memory, sequence, p0, p1)) {
        return false;
    }
    if (delta != 0) {
        llama_memory_seq_add(memory, sequence, p1, -1, delta);
    }
    return true;
}

uint64_t so8t_session_state_size(so8t_session * session, int32_t sequence) {
    return sequence < 0 ? llama_state_get_size(session->ctx) : llama_state_seq_get_size(session->ctx, sequence);
}

uint64_t so8t_session_state_get(so8t_session * session, int32_t sequence, uint8_t * dst, uint64_t size) {
    return sequence < 0 ? llama_state_get_data(session->ctx, dst, size) :
                          llama_state_seq_get_data(session->ctx, dst, size, sequence);
}

uint64_t so8t_session_state_set(so8t_session * session, int32_t sequence, const uint8_t * src, uint64_t size) {
    return sequence < 0 ? llama_state_set_data(session->ctx, src, size) :
                          llama_state_seq_set_data(session->ctx, src, size, sequence);
}

int32_t so8t_session_lora(so8t_session * session, const char * path, float scale) {
    so8t_error.clear();
    session->lora = llama_adapter_lora_init(session->model, path); // owned by the model
    if (!session->lora) {
        return 1;
    }
    return llama_set_adapters_lora(session->ctx, &session->lora, 1, &scale);
}
