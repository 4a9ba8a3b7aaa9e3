#include "llama-so8t-heads-load.h"
#include "llama-so8t-stems.h"

#include "llama-so8t.h"
#include "so8t-format.h"
#include "so8t-kv.h"

#include "llama-impl.h"
#include "llama-model-loader.h"
#include "llama-model.h"

#include "ggml-backend.h"
#include "gguf.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

so8t_head_tensors::so8t_head_tensors(const llama_model & model) :
    n_embd(model.hparams.n_embd),
    n_layer(model.hparams.n_layer()),
    n_vocab(model.vocab.n_tokens()),
    first_stem(model.so8t_heads ? model.so8t_heads->stems.size() : 0) {}

void so8t_check_f32(const ggml_tensor * tensor, const std::string & name) {
    if (tensor && tensor->type != GGML_TYPE_F32) {
        throw std::runtime_error(
            format("so8t: tensor '%s' is %s, expected f32", name.c_str(), ggml_type_name(tensor->type)));
    }
}

static const so8t_stem_form & so8t_find_form(
    const so8t_head & head, const std::string & stem, const std::string & activation) {
    so8t_names known;
    for (const auto & form : so8t_stem_forms()) {
        known.push_back(form.activation);
    }
    const int form = so8t_index_of(known, activation);
    if (form < 0) {
        throw std::runtime_error(format("so8t: head '%s' has the stem '%s' and activation '%s', expected %s",
            head.name.c_str(), stem.c_str(), so8t_shown(activation).c_str(), so8t_one_of(known).c_str()));
    }
    return so8t_stem_forms()[form];
}

// numbers that a head or its stem reads
static int64_t so8t_n_in(const so8t_head_tensors & tensors, const so8t_heads & heads, const so8t_head & head) {
    return (int64_t) heads.sources[head.source].taps.size() * tensors.n_embd;
}

// index of what a head reads; heads that read the same share it
static int32_t so8t_find_source(std::vector<so8t_source> & sources, const so8t_source & source) {
    const auto found = std::find(sources.begin(), sources.end(), source);
    const auto index = found - sources.begin();
    if (found == sources.end()) {
        sources.push_back(source);
    }
    return (int32_t) index;
}

// the places that are computed for outputs only have no value at every token
static void so8t_read_all_tokens(const std::string & name, so8t_source & source, int64_t n_layer) {
    for (const int32_t tap : source.taps) {
        if (tap == SO8T_TAP_FINAL_NORM || tap == n_layer) {
            throw std::runtime_error(
                format("so8t: head '%s' reads every token and has the tap %d, expected 0 to %d: others are computed "
                       "where there are logits only",
                    name.c_str(), tap, (int) n_layer - 1));
        }
    }
    source.all_tokens = true;
}

// heads of one file that name the same stem share it, and have to agree
static void so8t_check_shared(const so8t_heads & heads, const so8t_head & head, int32_t i_stem,
    const so8t_stem_form & form, uint32_t sliding_window) {
    const auto & stem = heads.stems[i_stem];
    if (stem.form != &form) {
        const auto first = std::find_if(
            heads.heads.begin(), heads.heads.end(), [&](const so8t_head & other) { return other.stem == i_stem; });
        throw std::runtime_error(format("so8t: heads '%s' and '%s' share the stem '%s' and have the activations "
                                        "'%s' and '%s', expected the same",
            first->name.c_str(), head.name.c_str(), stem.name.c_str(), stem.form->activation, form.activation));
    }
    if (stem.source != head.source) {
        throw std::runtime_error(format("so8t: head '%s' shares the stem '%s' and has other taps or another norm of "
                                        "them than the heads before it, expected the same",
            head.name.c_str(), stem.name.c_str()));
    }
    if (stem.sliding_window != sliding_window) {
        throw std::runtime_error(
            format("so8t: head '%s' shares the stem '%s' and has the sliding_window %u, expected %u as the "
                   "heads before it",
                head.name.c_str(), stem.name.c_str(), sliding_window, stem.sliding_window));
    }
}

// rows of a tensor of a stem, which is there and has some
static int64_t so8t_n_rows(so8t_head_tensors & tensors, const so8t_head & head, const std::string & suffix) {
    const int64_t n_rows = tensors.n_rows(LLM_TENSOR_SO8T_STEM, suffix);
    if (n_rows < 0) {
        throw std::runtime_error(
            format("so8t: head '%s': tensor 'so8t_stem.%s' is missing", head.name.c_str(), suffix.c_str()));
    }
    if (n_rows < 1) {
        throw std::runtime_error(format("so8t: tensor 'so8t_stem.%s' has no rows, expected 1 or more", suffix.c_str()));
    }
    return n_rows;
}

static void so8t_create_attention(so8t_head_tensors & tensors, const so8t_head & head, int64_t n_in, so8t_stem & stem) {
    auto named = [&](const char * suffix) { return format(suffix, stem.name.c_str()); };

    const int64_t n_inner  = so8t_n_rows(tensors, head, named(SO8T_TENSOR_ATTN_Q));
    const int64_t head_dim = so8t_n_rows(tensors, head, named(SO8T_TENSOR_ATTN_K));
    if (n_inner % head_dim != 0) {
        throw std::runtime_error(
            format("so8t: tensor 'so8t_stem.%s' has %d rows, expected a multiple of the %d of '%s'",
                named(SO8T_TENSOR_ATTN_Q).c_str(), (int) n_inner, (int) head_dim, named(SO8T_TENSOR_ATTN_K).c_str()));
    }
    stem.attn_q      = tensors.create(LLM_TENSOR_SO8T_STEM, named(SO8T_TENSOR_ATTN_Q), {n_in, n_inner}, true);
    stem.attn_k      = tensors.create(LLM_TENSOR_SO8T_STEM, named(SO8T_TENSOR_ATTN_K), {n_in, head_dim}, true);
    stem.attn_v      = tensors.create(LLM_TENSOR_SO8T_STEM, named(SO8T_TENSOR_ATTN_V), {n_in, head_dim}, true);
    stem.attn_output = tensors.create(LLM_TENSOR_SO8T_STEM, named(SO8T_TENSOR_ATTN_OUTPUT), {n_inner, n_inner}, true);
    stem.norm        = tensors.create(LLM_TENSOR_SO8T_STEM, named(SO8T_TENSOR_NORM), {n_inner}, true);
}

static void so8t_create_mlp(so8t_head_tensors & tensors, const so8t_head & head, int64_t n_in, so8t_stem & stem) {
    auto named = [&](const char * suffix) { return format(suffix, stem.name.c_str()); };

    const int64_t n_inner = so8t_n_rows(tensors, head, named(SO8T_TENSOR_WEIGHT));
    stem.weight           = tensors.create(LLM_TENSOR_SO8T_STEM, named(SO8T_TENSOR_WEIGHT), {n_in, n_inner}, true);
    stem.bias             = tensors.create(LLM_TENSOR_SO8T_STEM, named(SO8T_TENSOR_BIAS), {n_inner}, false);
    if (stem.form->has_norm) {
        stem.norm = tensors.create(LLM_TENSOR_SO8T_STEM, named(SO8T_TENSOR_NORM), {n_inner}, true);
    }
}

// index of the stem of a head
static int32_t so8t_load_stem(so8t_head_tensors & tensors, so8t_heads & result, const so8t_head & head,
    const std::string & name, const std::string & activation, uint32_t sliding_window) {
    const auto & form = so8t_find_form(head, name, activation);
    for (size_t i = tensors.first_stem; i < result.stems.size(); ++i) {
        if (result.stems[i].name == name) {
            so8t_check_shared(result, head, i, form, sliding_window);
            return (int32_t) i;
        }
    }
    so8t_stem stem;
    stem.name           = name;
    stem.form           = &form;
    stem.source         = head.source;
    stem.sliding_window = sliding_window;
    const auto create   = form.form == LLAMA_SO8T_FORM_ATTENTION ? so8t_create_attention : so8t_create_mlp;
    create(tensors, head, so8t_n_in(tensors, result, head), stem);
    result.stems.push_back(stem);
    return (int32_t) result.stems.size() - 1;
}

// index of the head of the same file that another one depends on; -1: on none
static int32_t so8t_load_dependency(
    const gguf_context * ctx, const std::string & name, const so8t_heads & heads, size_t first_head) {
    const std::string key  = format(SO8T_KV_HEAD_DEPENDS_ON, name.c_str());
    const std::string text = so8t_kv_string(ctx, key, "");
    const auto found       = std::find_if(heads.heads.begin() + first_head, heads.heads.end(),
        [&](const so8t_head & other) { return other.name == text; });
    if (found != heads.heads.end()) {
        return (int32_t) (found - heads.heads.begin());
    }
    if (gguf_find_key(ctx, key.c_str()) >= 0) {
        throw std::runtime_error(format("so8t: key '%s' is '%s', expected the name of a head before it in this file",
            key.c_str(), so8t_shown(text).c_str()));
    }
    return -1;
}

// every key of a head is known, in the version of the file, and belongs to a head that the file names
static void so8t_check_head_keys(const gguf_context * ctx, const so8t_names & names) {
    const uint32_t version = so8t_kv_version(ctx);
    const size_t n_prefix  = strlen(SO8T_KV_HEAD_PREFIX);
    so8t_names known;
    for (const auto & row : so8t_head_key_rows) {
        known.push_back(row.field);
    }
    for (int64_t i = 0; i < gguf_get_n_kv(ctx); ++i) {
        const std::string key = gguf_get_key(ctx, i);
        if (key.compare(0, n_prefix, SO8T_KV_HEAD_PREFIX) != 0) {
            continue;
        }
        const size_t dot      = key.find('.', n_prefix);
        const bool has_field  = dot != std::string::npos;
        const std::string at  = key.substr(n_prefix, has_field ? dot - n_prefix : dot);
        const int field       = has_field ? so8t_index_of(known, key.substr(dot + 1)) : -1;
        const std::string say = so8t_shown(key);
        if (field < 0) {
            throw std::runtime_error(format("so8t: key '%s' is unknown, expected '" SO8T_KV_HEAD_PREFIX "NAME.' and %s",
                say.c_str(), so8t_one_of(known).c_str()));
        }
        if (so8t_index_of(names, at) < 0) {
            throw std::runtime_error(
                format("so8t: key '%s' is of a head that '" SO8T_KV_HEADS "' does not name", say.c_str()));
        }
        if (so8t_head_key_rows[field].since > version) {
            throw std::runtime_error(
                format("so8t: key '%s' came with version %u of the format, the file is of version %u", say.c_str(),
                    so8t_head_key_rows[field].since, version));
        }
    }
}

static void so8t_check_form(const gguf_context * ctx, const so8t_head & head, llama_so8t_form form) {
    const so8t_names known(std::begin(so8t_form_names), std::end(so8t_form_names));
    const std::string key = format(SO8T_KV_HEAD_FORM, head.name.c_str());
    if (so8t_kv_name(ctx, key, known, form) != form) {
        throw std::runtime_error(
            format("so8t: key '%s' is '%s', expected '%s' for a head with this stem and activation", key.c_str(),
                so8t_kv_string(ctx, key, "").c_str(), so8t_form_names[form]));
    }
}

// the stem of a head, with what belongs to it
static void so8t_create_stem(const gguf_context * ctx, so8t_head_tensors & tensors, so8t_heads & result,
    so8t_head & head, const std::string & activation) {
    const std::string key         = format(SO8T_KV_HEAD_SLIDING_WINDOW, head.name.c_str());
    const std::string stem        = so8t_kv_string(ctx, format(SO8T_KV_HEAD_STEM, head.name.c_str()), "");
    const uint32_t sliding_window = so8t_kv_uint(ctx, key, 0);
    if (!stem.empty()) {
        if (!so8t_is_name(stem)) {
            throw std::runtime_error(format("so8t: key '%s' is '%s', expected letters, digits, '_' and '-'",
                format(SO8T_KV_HEAD_STEM, head.name.c_str()).c_str(), so8t_shown(stem).c_str()));
        }
        head.stem = so8t_load_stem(tensors, result, head, stem, activation, sliding_window);
    } else if (activation != SO8T_ACTIVATION_WITHOUT_STEM) {
        throw std::runtime_error(format(
            "so8t: head '%s' has the activation '%s' and no stem", head.name.c_str(), so8t_shown(activation).c_str()));
    }
    const auto form = head.stem < 0 ? LLAMA_SO8T_FORM_LINEAR : result.stems[head.stem].form->form;
    so8t_check_form(ctx, head, form);
    if (sliding_window > INT32_MAX || (sliding_window > 0 && form != LLAMA_SO8T_FORM_ATTENTION)) {
        throw std::runtime_error(format("so8t: key '%s' is %u, expected 0 for the form '%s', or at most %d",
            key.c_str(), sliding_window, so8t_form_names[form], INT32_MAX));
    }
    if (head.aggregates_prompt() || form == LLAMA_SO8T_FORM_ATTENTION) {
        so8t_read_all_tokens(head.name, result.sources[head.source], tensors.n_layer);
    }
}

// reads the keys of a head, and creates its tensors
static so8t_head so8t_create_head(const gguf_context * ctx, so8t_head_tensors & tensors, so8t_heads & result,
    size_t first_head, const std::string & name) {
    so8t_head head     = so8t_load_head_keys(ctx, name, tensors.n_vocab);
    head.source        = so8t_find_source(result.sources, so8t_load_source_keys(ctx, head, tensors.n_layer));
    head.offset        = result.n_values;
    head.stored_offset = result.n_stored;
    head.depends_on    = so8t_load_dependency(ctx, name, result, first_head);
    so8t_create_stem(ctx, tensors, result, head,
        so8t_kv_string(ctx, format(SO8T_KV_HEAD_ACTIVATION, name.c_str()), SO8T_ACTIVATION_WITHOUT_STEM));

    const int64_t n_labels = head.labels.size();
    const int64_t n_in     = head.stem < 0 ? so8t_n_in(tensors, result, head) : result.stems[head.stem].n_inner();

    head.weight = tensors.create(
        LLM_TENSOR_SO8T_HEAD, format(SO8T_TENSOR_WEIGHT, name.c_str()), {n_in, n_labels}, true);
    head.bias = tensors.create(LLM_TENSOR_SO8T_HEAD, format(SO8T_TENSOR_BIAS, name.c_str()), {n_labels}, false);
    return head;
}

void so8t_read_heads(const gguf_context * ctx, so8t_head_tensors & tensors, so8t_heads & result) {
    const auto names   = so8t_kv_strings(ctx, SO8T_KV_HEADS, false);
    const size_t first = result.heads.size();
    for (const auto & name : names) {
        const auto found = std::find_if(
            result.heads.begin(), result.heads.end(), [&](const so8t_head & h) { return h.name == name; });
        if (found < result.heads.begin() + first) {
            throw std::runtime_error(
                format("so8t: the model has a head '%s' already, expected heads of other names", name.c_str()));
        }
        if (found != result.heads.end()) {
            throw std::runtime_error(format("so8t: key '" SO8T_KV_HEADS "' names '%s' twice", name.c_str()));
        }
        if (!so8t_is_name(name)) {
            throw std::runtime_error(
                format("so8t: key '" SO8T_KV_HEADS "' has '%s', expected letters, digits, '_' and '-'",
                    so8t_shown(name).c_str()));
        }
        so8t_head head   = so8t_create_head(ctx, tensors, result, first, name);
        result.n_values += head.labels.size();
        result.n_stored += head.aggregates_prompt() ? head.labels.size() : 0;
        result.heads.push_back(std::move(head));
    }
    so8t_check_head_keys(ctx, names);
}

//
// heads of a model's own file
//

class so8t_model_tensors : public so8t_head_tensors {
  public:
    so8t_model_tensors(llama_model_base & model, llama_model_loader & ml) :
        so8t_head_tensors(model),
        model(model),
        ml(ml),
        tn(model.arch) {}

    int64_t n_rows(llm_tensor kind, const std::string & suffix) override {
        const ggml_tensor * meta = ml.get_tensor_meta(tn(kind, suffix.c_str()).str().c_str());
        return meta ? meta->ne[1] : -1;
    }

    ggml_tensor * create(llm_tensor kind, const std::string & suffix, const std::initializer_list<int64_t> & ne,
        bool is_required) override {
        const LLM_TN_IMPL name = tn(kind, suffix.c_str());
        ggml_tensor * tensor   = model.create_tensor(name, ne, is_required ? 0 : model.TENSOR_NOT_REQUIRED);
        so8t_check_f32(tensor, name.str());
        return tensor;
    }

  private:
    llama_model_base & model;
    llama_model_loader & ml;
    const LLM_TN tn;
};

void so8t_load_heads(llama_model_base & model, llama_model_loader & ml) {
    auto result = std::make_shared<so8t_heads>();
    so8t_model_tensors tensors(model, ml);
    so8t_read_heads(ml.metadata, tensors, *result);
    if (!result->heads.empty()) {
        model.so8t_heads = result;
    }
    if (model.arch != LLM_ARCH_SO8T) { // a base whose converter has folded rotations
        const auto sites = so8t_load_sites(ml.metadata, SO8T_KV_ROTATION_FOLDED);
        model.so8t_folded.assign(sites.begin(), sites.end());
    }
}
