#include "llama-so8t-token-memory.h"

#include "llama-batch.h"
#include "llama-cparams.h"
#include "llama-graph.h"
#include "llama-impl.h"
#include "llama-io.h"
#include "llama-model.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

static const uint32_t SO8T_CELL_PAD    = 256; // of what a graph looks at, as in llama.cpp's KV cache
static const uint32_t SO8T_STATE_MAGIC = 0x73386d31;

// FNV-1a over what decides the numbers in the cells: weights of the heads that keep something, and what they read
class so8t_cell_hash {
  public:
    void add(const void * data, size_t n_bytes) {
        for (size_t i = 0; i < n_bytes; ++i) {
            value = (value ^ ((const uint8_t *) data)[i]) * 0x100000001b3;
        }
    }

    void add(const ggml_tensor * tensor) {
        if (tensor) {
            std::vector<uint8_t> data(ggml_nbytes(tensor));
            ggml_backend_tensor_get(tensor, data.data(), 0, data.size());
            add(data.data(), data.size());
        }
    }

    void add(const so8t_source & source) {
        add(source.taps.data(), source.taps.size() * sizeof(int32_t));
        add(&source.norm, sizeof(source.norm));
    }

    uint64_t value = 0xcbf29ce484222325;
};

static uint64_t so8t_hash_of_cells(const so8t_heads & heads) {
    so8t_cell_hash hash;
    for (const auto & stem : heads.stems) {
        if (stem.attn_k) {
            hash.add(heads.sources[stem.source]);
            hash.add(stem.attn_k);
            hash.add(stem.attn_v);
        }
    }
    for (const auto & head : heads.heads) {
        if (!head.aggregates_prompt()) {
            continue;
        }
        hash.add(heads.sources[head.source]);
        hash.add(head.weight);
        hash.add(head.bias);
        for (size_t i = 0; head.stem >= 0 && i < heads.stems[head.stem].tensors().size(); ++i) {
            hash.add(heads.stems[head.stem].tensors()[i]);
        }
    }
    return hash.value;
}

so8t_token_memory::so8t_token_memory(const llama_model & model, const llama_cparams & cparams, llama_memory_ptr base) :
    base(std::move(base)),
    is_unified(cparams.kv_unified),
    n_seq_max(cparams.kv_unified ? LLAMA_MAX_SEQ : cparams.n_seq_max),
    hash(model.hparams.no_alloc ? 0 : so8t_hash_of_cells(*model.so8t_heads)) {
    const auto & heads     = *model.so8t_heads;
    const uint32_t n_cells = GGML_PAD(cparams.n_ctx, SO8T_CELL_PAD);
    cells.resize(n_cells);

    ctx.reset(ggml_init({ggml_tensor_overhead() * (2 * heads.stems.size() + 1), nullptr, true}));
    for (const auto & stem : heads.stems) {
        attention_cells made;
        if (stem.attn_k) {
            const int64_t head_dim = stem.attn_k->ne[1];
            made.k                 = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, head_dim, n_cells);
            made.v                 = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, n_cells, head_dim);
            ggml_format_name(made.k, "so8t_cells_k-%s", stem.name.c_str());
            ggml_format_name(made.v, "so8t_cells_v-%s", stem.name.c_str());
        }
        stems.push_back(made);
    }
    if (heads.n_stored > 0) {
        values = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, heads.n_stored, n_cells);
        ggml_set_name(values, "so8t_cells_values");
    }
    // beside the weights of the heads
    auto * buft = ggml_backend_dev_buffer_type(model.dev_output());
    buffer.reset(model.hparams.no_alloc ? ggml_backend_buft_alloc_buffer(buft, 0) :
                                          ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), buft));
    if (!buffer) {
        throw std::runtime_error(format("so8t: no memory for what heads keep of %u tokens", n_cells));
    }
    if (model.hparams.no_alloc) {
        for (auto * t = ggml_get_first_tensor(ctx.get()); t; t = ggml_get_next_tensor(ctx.get(), t)) {
            t->buffer = buffer.get(); // llama.cpp only estimates the memory of a context
        }
    }
    clear_data();
}

// a cell without a token counts nothing, but what it has must be finite
void so8t_token_memory::clear_data() {
    if (ggml_backend_buffer_get_size(buffer.get()) > 0) {
        ggml_backend_buffer_clear(buffer.get(), 0);
    }
}

llama_memory_context_ptr so8t_token_memory::init_batch(llama_batch_allocr & balloc, uint32_t n_ubatch, bool embd_all) {
    auto context = base->init_batch(balloc, n_ubatch, embd_all);
    if (!context || llama_memory_status_is_fail(context->get_status())) {
        return context;
    }
    const bool has_room = balloc.get_n_tokens() <= n_cells() - cells.get_used();
    return std::make_unique<so8t_token_memory_context>(
        *this, std::move(context), 0, has_room ? LLAMA_MEMORY_STATUS_SUCCESS : LLAMA_MEMORY_STATUS_FAILED_PREPARE);
}

llama_memory_context_ptr so8t_token_memory::init_full() {
    auto context = base->init_full();
    return context ? std::make_unique<so8t_token_memory_context>(
                         *this, std::move(context), n_cells(), LLAMA_MEMORY_STATUS_SUCCESS) :
                     nullptr;
}

llama_memory_context_ptr so8t_token_memory::init_update(llama_context * lctx, bool optimize) {
    cells.reset_shift();
    return base->init_update(lctx, optimize);
}

bool so8t_token_memory_context::apply() {
    if (!base->apply()) {
        return false;
    }
    cells = memory.place(base->get_ubatch());
    n_kv  = memory.n_used();
    return cells.size() == base->get_ubatch().n_tokens;
}

std::vector<uint32_t> so8t_token_memory::place(const llama_ubatch & ubatch) {
    std::vector<uint32_t> result;
    const bool has_holes = cells.get_used() < cells.used_max_p1();
    for (uint32_t cell = has_holes ? 0 : cells.used_max_p1(); cell < cells.size() && result.size() < ubatch.n_tokens;
        ++cell) {
        if (cells.is_empty(cell)) {
            result.push_back(cell);
        }
    }
    for (uint32_t i = 0; i < result.size(); ++i) {
        cells.pos_set(result[i], ubatch.pos[i]);
        for (int32_t s = 0; s < ubatch.n_seq_id[i]; ++s) {
            cells.seq_add(result[i], ubatch.seq_id[i][s]);
        }
    }
    return result;
}

uint32_t so8t_token_memory::n_used() const {
    return std::clamp<uint32_t>(GGML_PAD(cells.used_max_p1(), SO8T_CELL_PAD), SO8T_CELL_PAD, n_cells());
}

//
// sequences
//

void so8t_token_memory::clear(bool data) {
    base->clear(data);
    cells.reset();
    if (data) {
        clear_data();
    }
}

// used cells of a sequence (-1: of any) at [p0, p1), where a negative end is none
so8t_token_memory::cell_list so8t_token_memory::cells_of(llama_seq_id seq_id, llama_pos p0, llama_pos p1) const {
    cell_list result;
    for (uint32_t i = 0; i < cells.used_max_p1(); ++i) {
        if (!cells.is_empty(i) && (seq_id < 0 || cells.seq_has(i, seq_id)) && cells.pos_get(i) >= p0 &&
            (p1 < 0 || cells.pos_get(i) < p1)) {
            result.push_back(i);
        }
    }
    return result;
}

bool so8t_token_memory::seq_rm(llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    if (!base->seq_rm(seq_id, p0, p1)) {
        return false;
    }
    for (const uint32_t cell : cells_of(seq_id, p0, p1)) {
        seq_id < 0 ? cells.rm(cell) : (void) cells.seq_rm(cell, seq_id);
    }
    return true;
}

void so8t_token_memory::seq_cp(llama_seq_id seq_id_src, llama_seq_id seq_id_dst, llama_pos p0, llama_pos p1) {
    base->seq_cp(seq_id_src, seq_id_dst, p0, p1);
    if (!is_unified && seq_id_src != seq_id_dst) { // the copy takes the place of what was there
        for (const uint32_t cell : cells_of(seq_id_dst, -1, -1)) {
            cells.seq_rm(cell, seq_id_dst);
        }
    }
    for (const uint32_t cell : cells_of(seq_id_src, p0, p1)) {
        if (!cells.seq_has(cell, seq_id_dst)) {
            cells.seq_add(cell, seq_id_dst);
        }
    }
}

void so8t_token_memory::seq_keep(llama_seq_id seq_id) {
    base->seq_keep(seq_id);
    for (uint32_t i = 0; i < cells.size(); ++i) {
        cells.seq_keep(i, seq_id);
    }
}

// The cell of a token that only this sequence moves. In a unified KV cache sequences share cells, and move together; else
// each has its own, and so it gets one here.
uint32_t so8t_token_memory::own_cell(uint32_t cell, llama_seq_id seq_id) {
    if (is_unified || cells.seq_count(cell) == 1) {
        return cell;
    }
    const llama_pos pos = cells.pos_get(cell);
    uint32_t copy       = 0;
    while (copy < n_cells() && !cells.is_empty(copy)) {
        ++copy;
    }
    // a KV cache has as many cells without sharing; only in a recurrent model can sequences be longer than that
    GGML_ASSERT(
        copy < n_cells() && "so8t: the heads have no cells left to move one of two sequences that share tokens");
    std::vector<std::vector<uint8_t>> data;
    each_piece(
        [&](ggml_tensor * tensor, size_t offset, size_t size) {
            data.emplace_back(size);
            ggml_backend_tensor_get(tensor, data.back().data(), offset, size);
        },
        {cell});
    auto piece = data.begin();
    each_piece([&](ggml_tensor * tensor, size_t offset,
                   size_t size) { ggml_backend_tensor_set(tensor, (piece++)->data(), offset, size); },
        {copy});
    cells.seq_rm(cell, seq_id);
    cells.pos_set(copy, pos);
    cells.seq_add(copy, seq_id);
    return copy;
}

void so8t_token_memory::seq_add(llama_seq_id seq_id, llama_pos p0, llama_pos p1, llama_pos shift) {
    base->seq_add(seq_id, p0, p1, shift);
    for (const uint32_t cell : cells_of(seq_id, p0, p1)) {
        cells.pos_add(own_cell(cell, seq_id), shift);
    }
}

void so8t_token_memory::seq_div(llama_seq_id seq_id, llama_pos p0, llama_pos p1, int d) {
    base->seq_div(seq_id, p0, p1, d);
    for (const uint32_t cell : cells_of(seq_id, p0, p1)) {
        cells.pos_div(own_cell(cell, seq_id), d);
    }
}

std::map<ggml_backend_buffer_type_t, size_t> so8t_token_memory::memory_breakdown() const {
    auto result           = base->memory_breakdown();
    auto * buft           = ggml_backend_buffer_get_type(buffer.get());
    const size_t n_bytes  = ggml_backend_buffer_get_size(buffer.get());
    result[buft]         += n_bytes > 0 ? n_bytes : ggml_backend_alloc_ctx_tensors_from_buft_size(ctx.get(), buft);
    return result;
}

//
// values of texts
//

std::vector<float> so8t_token_memory::read_values(
    llama_seq_id seq_id, llama_pos p0, llama_pos p1, const so8t_head & head) const {
    const size_t n_row  = values->ne[0];
    const auto & by_pos = cells.seq_pos_get(seq_id);
    const auto end      = by_pos.lower_bound({p1, 0});
    std::vector<float> result;
    std::vector<float> rows;
    for (auto it = by_pos.lower_bound({p0, 0}); it != end;) {
        const uint32_t first = it->second; // neighbours at once: each is a transfer from the device
        uint32_t n           = 0;
        while (it != end && it->second == first + n) {
            ++it;
            ++n;
        }
        rows.resize(n * n_row);
        ggml_backend_tensor_get(values, rows.data(), first * values->nb[1], rows.size() * sizeof(float));
        for (uint32_t i = 0; i < n; ++i) {
            const float * row = &rows[i * n_row + head.stored_offset];
            result.insert(result.end(), row, row + head.labels.size());
        }
    }
    return result;
}

//
// state
//

// calls io(tensor, offset, n_bytes) for the data of these cells, neighbours at once
template <typename Io>
void so8t_token_memory::each_piece(Io && io, const cell_list & list) const {
    const auto each_run = [&](ggml_tensor * tensor, size_t begin, size_t n_bytes) {
        for (size_t first = 0, last = 0; first < list.size(); first = last) {
            for (last = first + 1; last < list.size() && list[last] == list[last - 1] + 1;) {
                ++last;
            }
            io(tensor, begin + list[first] * n_bytes, (last - first) * n_bytes);
        }
    };
    for (const auto & stem : stems) {
        if (!stem.k) {
            continue;
        }
        each_run(stem.k, 0, stem.k->nb[1]);
        for (int64_t row = 0; row < stem.v->ne[1]; ++row) {
            each_run(stem.v, row * stem.v->nb[1], stem.v->nb[0]);
        }
    }
    if (values) {
        each_run(values, 0, values->nb[1]);
    }
}

// what a state begins with: whether it is of the same heads, and how many cells it has
struct so8t_state_header {
    uint32_t magic;
    uint32_t n_cells;
    uint64_t hash;
};

void so8t_token_memory::state_write(llama_io_write_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) const {
    base->state_write(io, seq_id, flags);

    const cell_list list           = cells_of(seq_id, -1, -1);
    const so8t_state_header header = {SO8T_STATE_MAGIC, (uint32_t) list.size(), hash};
    io.write(&header, sizeof(header));
    for (const uint32_t cell : list) {
        const llama_pos pos = cells.pos_get(cell);
        std::vector<llama_seq_id> seqs;
        for (llama_seq_id s = 0; s < LLAMA_MAX_SEQ && seq_id < 0; ++s) {
            if (cells.seq_has(cell, s)) {
                seqs.push_back(s);
            }
        }
        const uint32_t n_seqs = seqs.size();
        io.write(&pos, sizeof(pos));
        io.write(&n_seqs, sizeof(n_seqs));
        io.write(seqs.data(), n_seqs * sizeof(llama_seq_id));
    }
    std::vector<float> data;
    each_piece(
        [&](ggml_tensor * tensor, size_t offset, size_t size) {
            data.resize(size / sizeof(float));
            ggml_backend_tensor_get(tensor, data.data(), offset, size);
            io.write(data.data(), size);
        },
        list);
}

void so8t_token_memory::state_read(llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) {
    try {
        base->state_read(io, seq_id, flags);
        for (const uint32_t cell : cells_of(seq_id, -1, -1)) {
            seq_id < 0 ? cells.rm(cell) : (void) cells.seq_rm(cell, seq_id);
        }
        read_cells(io, seq_id);
    } catch (...) { // the model's own memory and the cells: neither is read, or both are
        io.discard();
        if (seq_id < 0) {
            clear(false);
        } else {
            seq_rm(seq_id, -1, -1);
        }
        throw;
    }
}

// the sequences of a cell: in the state of one sequence it is this one
std::vector<llama_seq_id> so8t_token_memory::read_seqs(llama_io_read_i & io, llama_seq_id seq_id) const {
    uint32_t n_seqs;
    io.read(&n_seqs, sizeof(n_seqs));
    if (n_seqs > n_seq_max || (n_seqs == 0) != (seq_id >= 0)) {
        throw std::runtime_error("so8t: the saved state has a token of no sequence, or of too many");
    }
    std::vector<llama_seq_id> seqs(n_seqs);
    io.read(seqs.data(), n_seqs * sizeof(llama_seq_id));
    for (auto s = seqs.begin(); s != seqs.end(); ++s) {
        if (*s < 0 || *s >= (llama_seq_id) n_seq_max || std::find(seqs.begin(), s, *s) != s) {
            throw std::runtime_error(
                format("so8t: the saved state has a token of sequence %d, expected different ones up to %u", *s,
                    n_seq_max - 1));
        }
    }
    return seq_id >= 0 ? std::vector<llama_seq_id>{seq_id} : seqs;
}

void so8t_token_memory::read_cells(llama_io_read_i & io, llama_seq_id seq_id) {
    so8t_state_header header;
    io.read(&header, sizeof(header));
    if (header.magic != SO8T_STATE_MAGIC || header.hash != hash) {
        throw std::runtime_error("so8t: the saved state is of a model with other heads");
    }
    const uint32_t n_free = n_cells() - cells.get_used();
    const auto check_room = [&](size_t n) {
        if (n > n_free) {
            throw std::runtime_error(
                format("so8t: the saved state has %zu tokens, more than the heads have room for (%u)", n, n_free));
        }
    };
    check_room(header.n_cells);
    size_t n_unshared = 0; // each sequence may need cells of its own later
    cell_list list;
    for (uint32_t cell = 0; list.size() < header.n_cells; ++cell) {
        if (!cells.is_empty(cell)) {
            continue;
        }
        llama_pos pos;
        io.read(&pos, sizeof(pos));
        if (pos < 0) {
            throw std::runtime_error(format("so8t: the saved state has a token at position %d", pos));
        }
        const auto seqs  = read_seqs(io, seq_id);
        n_unshared      += is_unified ? 1 : seqs.size();
        check_room(n_unshared);
        cells.pos_set(cell, pos);
        for (const llama_seq_id s : seqs) {
            cells.seq_add(cell, s);
        }
        list.push_back(cell);
    }
    std::vector<float> data;
    each_piece(
        [&](ggml_tensor * tensor, size_t offset, size_t size) {
            data.resize(size / sizeof(float));
            io.read(data.data(), size);
            if (!std::all_of(data.begin(), data.end(), [](float value) { return std::isfinite(value); })) {
                throw std::runtime_error("so8t: the saved state has a value that is not finite");
            }
            ggml_backend_tensor_set(tensor, data.data(), offset, size);
        },
        list);
}

//
// call sites in llama.cpp
//

llama_memory_ptr so8t_wrap_memory(llama_memory_i * base, const llama_model & model, const llama_cparams & cparams) {
    llama_memory_ptr owner(base);
    if (!model.so8t_heads || cparams.ctx_type == LLAMA_CONTEXT_TYPE_MTP) {
        return owner;
    }
    const auto & heads    = *model.so8t_heads;
    const bool looks_back = std::any_of(
        heads.stems.begin(), heads.stems.end(), [](const so8t_stem & stem) { return stem.attn_k; });
    if (!looks_back && heads.n_stored == 0) {
        return owner;
    }
    if (!base) {
        throw std::runtime_error(format("so8t: a head reads every token before the one that it judges, but the "
                                        "architecture '%s' keeps none",
            llm_arch_name(model.arch)));
    }
    return std::make_unique<so8t_token_memory>(model, cparams, std::move(owner));
}

llama_memory_t so8t_base_memory(llama_memory_t memory) {
    const auto * wrapper = dynamic_cast<const so8t_token_memory *>(memory);
    return wrapper ? wrapper->get_base() : memory;
}

const llama_memory_context_i * so8t_base_context(const llama_memory_context_i * context, llm_graph_result * res) {
    res->so8t_tokens = dynamic_cast<const so8t_token_memory_context *>(context);
    return res->so8t_tokens ? res->so8t_tokens->get_base() : context;
}
