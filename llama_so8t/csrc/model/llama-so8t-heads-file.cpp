#include "llama-so8t-check.h"
#include "llama-so8t-heads-load.h"
#include "llama-so8t.h"
#include "so8t-format.h"
#include "so8t-kv.h"
#include "so8t.h"

#include "llama-impl.h"
#include "llama-model.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "gguf.h"

#include <stdexcept>

// tensors of a heads file, copied to the device of the model's output
class so8t_file_tensors : public so8t_head_tensors {
  public:
    so8t_file_tensors(const llama_model & model, ggml_context * data) :
        so8t_head_tensors(model),
        data(data) {
        ctx.reset(ggml_init({ggml_tensor_overhead() * (count() + 1), nullptr, true}));
    }

    int64_t n_rows(llm_tensor kind, const std::string & suffix) override {
        const ggml_tensor * tensor = find(kind, suffix);
        return tensor ? tensor->ne[1] : -1;
    }

    ggml_tensor * create(llm_tensor kind, const std::string & suffix, const std::initializer_list<int64_t> & ne,
        bool is_required) override {
        const ggml_tensor * found = find(kind, suffix);
        const std::string name    = LLM_TN(LLM_ARCH_SO8T)(kind, suffix.c_str()).str();
        if (!found && !is_required) {
            return nullptr;
        }
        if (!found) {
            throw std::runtime_error(format("so8t: tensor '%s' is missing", name.c_str()));
        }
        so8t_check_f32(found, name);
        int64_t wanted[GGML_MAX_DIMS] = {1, 1, 1, 1};
        std::copy(ne.begin(), ne.end(), wanted);
        if (!std::equal(wanted, wanted + GGML_MAX_DIMS, found->ne)) {
            throw std::runtime_error(format("so8t: tensor '%s' is %s, expected %s", name.c_str(),
                llama_format_tensor_shape(found).c_str(), llama_format_tensor_shape({wanted[0], wanted[1]}).c_str()));
        }
        if (ggml_tensor * made = ggml_get_tensor(ctx.get(), name.c_str())) {
            return made; // a stem of several heads
        }
        return ggml_set_name(ggml_dup_tensor(ctx.get(), found), name.c_str());
    }

    // puts the data of all tensors that were created onto the device
    ggml_backend_buffer_ptr load(ggml_backend_dev_t device) {
        ggml_backend_buffer_ptr buffer(
            ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), ggml_backend_dev_buffer_type(device)));
        if (!buffer) {
            throw std::runtime_error("so8t: no memory for the heads on the device of the model's output");
        }
        ggml_backend_buffer_set_usage(buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        for (auto * t = ggml_get_first_tensor(ctx.get()); t; t = ggml_get_next_tensor(ctx.get(), t)) {
            ggml_backend_tensor_set(t, ggml_get_tensor(data, t->name)->data, 0, ggml_nbytes(t));
        }
        return buffer;
    }

    ggml_context_ptr ctx; // of the copies

  private:
    size_t count() const {
        size_t n = 0;
        for (auto * t = ggml_get_first_tensor(data); t; t = ggml_get_next_tensor(data, t)) {
            ++n;
        }
        return n;
    }

    const ggml_tensor * find(llm_tensor kind, const std::string & suffix) const {
        return ggml_get_tensor(data, LLM_TN(LLM_ARCH_SO8T)(kind, suffix.c_str()).str().c_str());
    }

    ggml_context * data;
};

static const char * so8t_base_name(const llama_model & model) {
    return model.arch == LLM_ARCH_SO8T ? static_cast<const llama_model_so8t &>(model).family->name :
                                         llm_arch_name(model.arch);
}

// the heads read a model like this one
static void so8t_check_base(const gguf_context * ctx, const llama_model & model) {
    if (so8t_kv_string(ctx, "general.type", "") != SO8T_HEADS_TYPE) {
        throw std::runtime_error(
            "so8t: the file is no heads file (key 'general.type'), expected heads without a model");
    }
    so8t_kv_version(ctx);
    const std::string base = so8t_kv_string(ctx, SO8T_KV_BASE_ARCHITECTURE, so8t_base_name(model));
    if (base != so8t_base_name(model)) {
        throw std::runtime_error(
            format("so8t: the heads belong to a base of the architecture '%s', the model is of '%s'",
                so8t_shown(base).c_str(), so8t_base_name(model)));
    }
    const std::pair<const char *, uint32_t> sizes[] = {
        {"so8t.embedding_length", model.hparams.n_embd}, {"so8t.block_count", model.hparams.n_layer()}};
    for (const auto & [key, found] : sizes) {
        const uint32_t expected = so8t_kv_uint(ctx, key, found);
        if (expected != found) {
            throw std::runtime_error(
                format("so8t: the heads belong to a base with '%s' %u, the model has %u", key, expected, found));
        }
    }
    const std::string sha256 = so8t_kv_string(ctx, SO8T_KV_BASE_SHA256, ""); // whoever knows the file compares it
    const bool is_hash       = sha256.size() == 64 && sha256.find_first_not_of("0123456789abcdef") == std::string::npos;
    if (gguf_find_key(ctx, SO8T_KV_BASE_SHA256) >= 0 && !is_hash) {
        throw std::runtime_error(
            format("so8t: key '" SO8T_KV_BASE_SHA256 "' is '%s', expected 64 hex digits", so8t_shown(sha256).c_str()));
    }
}

// data: null to read no more than its keys
static gguf_context_ptr so8t_open_heads_file(const char * path, ggml_context ** data) {
    gguf_context_ptr file(gguf_init_from_file(path, {/*.no_alloc =*/data == nullptr, /*.ctx =*/data}));
    if (!file) {
        throw std::runtime_error("so8t: the file cannot be read as GGUF");
    }
    return file;
}

static void so8t_load_heads_file(llama_model & model, const char * path) {
    so8t_check_base(so8t_open_heads_file(path, nullptr).get(), model); // the data of a model may be larger than memory
    ggml_context * data         = nullptr;
    const gguf_context_ptr file = so8t_open_heads_file(path, &data);
    ggml_context_ptr owner(data);

    auto heads = model.so8t_heads ? std::make_shared<so8t_heads>(*model.so8t_heads) : std::make_shared<so8t_heads>();
    const size_t first = heads->heads.size();
    so8t_file_tensors tensors(model, data);
    so8t_read_heads(file.get(), tensors, *heads);
    if (heads->heads.size() == first) {
        throw std::runtime_error("so8t: the file has no heads (key '" SO8T_KV_HEADS "')");
    }
    for (size_t i = first; i < heads->heads.size(); ++i) {
        heads->heads[i].beside = true;
    }
    auto buffer = tensors.load(model.dev_output());
    heads->owned.push_back(std::shared_ptr<ggml_context>(tensors.ctx.release(), ggml_free));
    heads->owned.push_back(std::shared_ptr<ggml_backend_buffer>(buffer.release(), ggml_backend_buffer_free));
    so8t_finish_heads(*heads, tensors.first_stem, first);
    model.so8t_heads = heads;
}

bool llama_so8t_load_heads(llama_model * model, const char * path) {
    try {
        so8t_load_heads_file(*model, path);
        return true;
    } catch (const std::exception & err) {
        LLAMA_LOG_ERROR("%s: error: heads file '%s': %s\n", __func__, path, err.what());
        return false;
    }
}
