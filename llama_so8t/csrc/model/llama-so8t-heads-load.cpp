#include "llama-so8t-heads-load.h"

#include "llama-so8t.h"
#include "so8t-format.h"
#include "so8t-kv.h"

#include "llama-impl.h"
#include "llama-model-loader.h"
#include "llama-model.h"

#include "ggml-backend.h"
#include "gguf.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <stdexcept>
#include <unordered_set>

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

static std::vector<so8t_label> so8t_load_labels(const gguf_context * ctx, const std::string & name) {
    auto key = [&](const char * pattern) { return format(pattern, name.c_str()); };

    const so8t_names known_actions(std::begin(so8t_action_names), std::end(so8t_action_names));
    const auto labels     = so8t_kv_strings(ctx, key(SO8T_KV_HEAD_LABELS), true);
    const auto actions    = so8t_kv_strings(ctx, key(SO8T_KV_HEAD_ACTIONS), true);
    const auto thresholds = so8t_kv_floats(ctx, key(SO8T_KV_HEAD_THRESHOLDS), true);
    if (labels.size() > SO8T_MAX_LABELS) {
        throw std::runtime_error(format("so8t: key '%s' has %zu labels, expected at most %d",
            key(SO8T_KV_HEAD_LABELS).c_str(), labels.size(), SO8T_MAX_LABELS));
    }
    if (labels.empty() || actions.size() != labels.size() || thresholds.size() != labels.size()) {
        throw std::runtime_error(format("so8t: head '%s' has %zu labels, %zu actions and %zu thresholds, expected the "
                                        "same number of each, one or more",
            name.c_str(), labels.size(), actions.size(), thresholds.size()));
    }
    std::vector<so8t_label> result;
    std::unordered_set<std::string> known_labels;
    for (size_t i = 0; i < labels.size(); ++i) {
        if (!so8t_is_text(labels[i]) || !known_labels.insert(labels[i]).second) {
            throw std::runtime_error(
                format("so8t: key '%s' has '%s' at %zu, expected different texts in UTF-8 that are "
                       "not empty",
                    key(SO8T_KV_HEAD_LABELS).c_str(), so8t_shown(labels[i]).c_str(), i));
        }
        const int action = so8t_index_of(known_actions, actions[i]);
        if (action < 0) {
            throw std::runtime_error(format("so8t: key '%s' has '%s', expected %s", key(SO8T_KV_HEAD_ACTIONS).c_str(),
                so8t_shown(actions[i]).c_str(), so8t_one_of(known_actions).c_str()));
        }
        if (!std::isfinite(thresholds[i])) {
            throw std::runtime_error(
                format("so8t: key '%s' has a value that is not finite", key(SO8T_KV_HEAD_THRESHOLDS).c_str()));
        }
        result.push_back({labels[i], thresholds[i], (llama_so8t_action) action});
    }
    return result;
}

// how the head was fitted: a text for people and programs that nothing here depends on
static std::string so8t_load_provenance(const gguf_context * ctx, const std::string & key) {
    const std::string text = so8t_kv_string(ctx, key, "");
    if (gguf_find_key(ctx, key.c_str()) >= 0 && (!so8t_is_text(text) || text.front() != '{')) {
        throw std::runtime_error(
            format("so8t: key '%s' is '%s', expected a JSON object in UTF-8", key.c_str(), so8t_shown(text).c_str()));
    }
    return text;
}

static so8t_head so8t_load_head(const gguf_context * ctx, const std::string & name, uint32_t n_vocab) {
    auto key = [&](const char * pattern) { return format(pattern, name.c_str()); };

    const so8t_names known_scopes(std::begin(so8t_scope_names), std::end(so8t_scope_names));
    const so8t_names known_rules(std::begin(so8t_rule_names), std::end(so8t_rule_names));
    const so8t_names known_links(std::begin(so8t_link_names), std::end(so8t_link_names));

    so8t_head head;
    head.name           = name;
    head.labels         = so8t_load_labels(ctx, name);
    head.temperature    = so8t_kv_float(ctx, key(SO8T_KV_HEAD_TEMPERATURE), head.temperature);
    head.debounce       = so8t_kv_uint(ctx, key(SO8T_KV_HEAD_DEBOUNCE), head.debounce);
    head.representation = so8t_kv_int(ctx, key(SO8T_KV_HEAD_REPRESENTATION), head.representation);
    head.prompt_token   = so8t_kv_int(ctx, key(SO8T_KV_HEAD_PROMPT_TOKEN), head.prompt_token);
    if (!(head.temperature > 0) || !std::isfinite(head.temperature)) {
        throw std::runtime_error(format("so8t: key '%s' is %f, expected a number above 0",
            key(SO8T_KV_HEAD_TEMPERATURE).c_str(), head.temperature));
    }
    if (head.debounce < 1 || head.debounce > SO8T_MAX_DEBOUNCE) {
        throw std::runtime_error(format("so8t: key '%s' is %u, expected 1 to %d", key(SO8T_KV_HEAD_DEBOUNCE).c_str(),
            head.debounce, SO8T_MAX_DEBOUNCE));
    }
    if (gguf_find_key(ctx, key(SO8T_KV_HEAD_PROMPT_TOKEN).c_str()) >= 0 &&
        (head.prompt_token < 0 || (n_vocab > 0 && head.prompt_token >= (llama_token) n_vocab))) {
        throw std::runtime_error(format("so8t: key '%s' is %d, expected a token of the vocabulary, 0 to %u",
            key(SO8T_KV_HEAD_PROMPT_TOKEN).c_str(), head.prompt_token, n_vocab - 1));
    }
    if (head.representation < LLAMA_SO8T_REPRESENTATION_VECTOR ||
        head.representation > LLAMA_SO8T_REPRESENTATION_SPINOR_MINUS) {
        throw std::runtime_error(format(
            "so8t: key '%s' is %d, expected 0, 1 or 2", key(SO8T_KV_HEAD_REPRESENTATION).c_str(), head.representation));
    }
    head.scope = (llama_so8t_scope) (so8t_kv_name(ctx, key(SO8T_KV_HEAD_SCOPE), known_scopes, head.scope - 1) + 1);
    head.rule  = (llama_so8t_rule) so8t_kv_name(ctx, key(SO8T_KV_HEAD_RULE), known_rules, head.rule);
    head.link  = (llama_so8t_link) so8t_kv_name(ctx, key(SO8T_KV_HEAD_LINK), known_links, head.link);
    if (head.link == LLAMA_SO8T_LINK_SOFTMAX && head.labels.size() < 2) {
        throw std::runtime_error(format("so8t: head '%s' has 1 label, expected two or more with the link '%s'",
            name.c_str(), so8t_link_names[head.link]));
    }
    if (head.link == LLAMA_SO8T_LINK_SIGMOID && head.rule == LLAMA_SO8T_RULE_ARGMAX) {
        throw std::runtime_error(
            format("so8t: head '%s' has the link '%s' and the rule '%s', expected the rule '%s' for "
                   "labels of which several may hold",
                name.c_str(), so8t_link_names[head.link], so8t_rule_names[head.rule],
                so8t_rule_names[LLAMA_SO8T_RULE_THRESHOLD]));
    }
    head.provenance = so8t_load_provenance(ctx, key(SO8T_KV_HEAD_PROVENANCE));
    return head;
}

// index of what a head reads; heads that read the same share it
static int32_t so8t_load_source(
    const gguf_context * ctx, const std::string & name, int64_t n_layer, std::vector<so8t_source> & sources) {
    const so8t_names known_norms(std::begin(so8t_tap_norm_names), std::end(so8t_tap_norm_names));
    const std::string key = format(SO8T_KV_HEAD_TAPS, name.c_str());

    so8t_source source;
    source.taps = so8t_kv_ints(ctx, key, false);
    source.norm = (llama_so8t_tap_norm) so8t_kv_name(
        ctx, format(SO8T_KV_HEAD_TAP_NORM, name.c_str()), known_norms, source.norm);
    if (gguf_find_key(ctx, key.c_str()) < 0) {
        source.taps = {SO8T_TAP_FINAL_NORM};
    }
    if (source.taps.empty()) {
        throw std::runtime_error(format("so8t: key '%s' is empty, expected one layer or more", key.c_str()));
    }
    for (auto tap = source.taps.begin(); tap != source.taps.end(); ++tap) {
        if (*tap < SO8T_TAP_FINAL_NORM || *tap > n_layer || std::find(source.taps.begin(), tap, *tap) != tap) {
            throw std::runtime_error(format("so8t: key '%s' has %d, expected different layers from %d to %d",
                key.c_str(), *tap, SO8T_TAP_FINAL_NORM, (int) n_layer));
        }
    }
    const auto found = std::find(sources.begin(), sources.end(), source);
    const auto index = found - sources.begin();
    if (found == sources.end()) {
        sources.push_back(source);
    }
    return (int32_t) index;
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

// index of the stem of a head; heads of one file that name the same share it, and have to agree on its activation
static int32_t so8t_load_stem(so8t_head_tensors & tensors, so8t_heads & result, const so8t_head & head,
    const std::string & name, const std::string & activation) {
    const auto & form = so8t_find_form(head, name, activation);
    for (size_t i = tensors.first_stem; i < result.stems.size(); ++i) {
        const auto & stem = result.stems[i];
        if (stem.name != name) {
            continue;
        }
        if (stem.form != &form) {
            const auto first = std::find_if(result.heads.begin(), result.heads.end(),
                [&](const so8t_head & other) { return other.stem == (int32_t) i; });
            throw std::runtime_error(format("so8t: heads '%s' and '%s' share the stem '%s' and have the activations "
                                            "'%s' and '%s', expected the same",
                first->name.c_str(), head.name.c_str(), name.c_str(), stem.form->activation, form.activation));
        }
        if (stem.source != head.source) {
            throw std::runtime_error(
                format("so8t: head '%s' shares the stem '%s' and has other taps or another norm of "
                       "them than the heads before it, expected the same",
                    head.name.c_str(), name.c_str()));
        }
        return (int32_t) i;
    }
    const std::string weight = format(SO8T_TENSOR_WEIGHT, name.c_str());
    const std::string bias   = format(SO8T_TENSOR_BIAS, name.c_str());
    const std::string norm   = format(SO8T_TENSOR_NORM, name.c_str());

    const int64_t n_in    = so8t_n_in(tensors, result, head);
    const int64_t n_inner = tensors.n_rows(LLM_TENSOR_SO8T_STEM, weight);
    if (n_inner < 0) {
        throw std::runtime_error(
            format("so8t: head '%s': tensor 'so8t_stem.%s' is missing", head.name.c_str(), weight.c_str()));
    }
    if (n_inner < 1) {
        throw std::runtime_error(format("so8t: tensor 'so8t_stem.%s' has no rows, expected 1 or more", weight.c_str()));
    }

    so8t_stem stem;
    stem.name   = name;
    stem.form   = &form;
    stem.source = head.source;
    stem.weight = tensors.create(LLM_TENSOR_SO8T_STEM, weight, {n_in, n_inner}, true);
    stem.bias   = tensors.create(LLM_TENSOR_SO8T_STEM, bias, {n_inner}, false);
    if (form.has_norm) {
        stem.norm = tensors.create(LLM_TENSOR_SO8T_STEM, norm, {n_inner}, true);
    }
    result.stems.push_back(stem);
    return (int32_t) result.stems.size() - 1;
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

static void so8t_check_form(const gguf_context * ctx, const so8t_head & head) {
    const so8t_names known(std::begin(so8t_form_names), std::end(so8t_form_names));
    const std::string key = format(SO8T_KV_HEAD_FORM, head.name.c_str());
    if (so8t_kv_name(ctx, key, known, head.form()) != head.form()) {
        throw std::runtime_error(format("so8t: key '%s' is '%s', expected '%s' for a head %s a stem", key.c_str(),
            so8t_kv_string(ctx, key, "").c_str(), so8t_form_names[head.form()], head.stem < 0 ? "without" : "with"));
    }
}

// reads the keys of a head, and creates its tensors
static so8t_head so8t_create_head(
    const gguf_context * ctx, so8t_head_tensors & tensors, so8t_heads & result, const std::string & name) {
    so8t_head head = so8t_load_head(ctx, name, tensors.n_vocab);
    head.source    = so8t_load_source(ctx, name, tensors.n_layer, result.sources);
    head.offset    = result.n_values;

    const int64_t n_labels = head.labels.size();
    int64_t n_in           = so8t_n_in(tensors, result, head);

    const std::string stem       = so8t_kv_string(ctx, format(SO8T_KV_HEAD_STEM, name.c_str()), "");
    const std::string activation = so8t_kv_string(
        ctx, format(SO8T_KV_HEAD_ACTIVATION, name.c_str()), SO8T_ACTIVATION_WITHOUT_STEM);
    if (!stem.empty()) {
        if (!so8t_is_name(stem)) {
            throw std::runtime_error(format("so8t: key '%s' is '%s', expected letters, digits, '_' and '-'",
                format(SO8T_KV_HEAD_STEM, name.c_str()).c_str(), so8t_shown(stem).c_str()));
        }
        head.stem = so8t_load_stem(tensors, result, head, stem, activation);
        n_in      = result.stems[head.stem].weight->ne[1];
    } else if (activation != SO8T_ACTIVATION_WITHOUT_STEM) {
        throw std::runtime_error(format(
            "so8t: head '%s' has the activation '%s' and no stem", name.c_str(), so8t_shown(activation).c_str()));
    }
    so8t_check_form(ctx, head);
    head.weight = tensors.create(
        LLM_TENSOR_SO8T_HEAD, format(SO8T_TENSOR_WEIGHT, name.c_str()), {n_in, n_labels}, true);
    head.bias = tensors.create(LLM_TENSOR_SO8T_HEAD, format(SO8T_TENSOR_BIAS, name.c_str()), {n_labels}, false);
    return head;
}

void so8t_read_heads(const gguf_context * ctx, so8t_head_tensors & tensors, so8t_heads & result) {
    const auto names = so8t_kv_strings(ctx, SO8T_KV_HEADS, false);
    for (const auto & name : names) {
        if (std::any_of(
                result.heads.begin(), result.heads.end(), [&](const so8t_head & h) { return h.name == name; })) {
            throw std::runtime_error(format("so8t: key '" SO8T_KV_HEADS "' names '%s' twice", name.c_str()));
        }
        if (!so8t_is_name(name)) {
            throw std::runtime_error(
                format("so8t: key '" SO8T_KV_HEADS "' has '%s', expected letters, digits, '_' and '-'",
                    so8t_shown(name).c_str()));
        }
        so8t_head head   = so8t_create_head(ctx, tensors, result, name);
        result.n_values += head.labels.size();
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
