#pragma once

#include "llama-so8t-heads.h"

#include "llama-kv-cells.h"
#include "llama-memory.h"

#include "ggml-cpp.h"

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

struct llama_cparams;
class llm_graph_result;

// The memory of a context whose heads look back: that of its model, and beside it a cell for each token with the keys
// and values of attention stems, and with the values of heads that are read over whole texts.
//
// The cells follow every operation on the sequences, so a cache hit, a shared prefix, a rollback and a restored state
// have what one pass over the sequence would have. Nothing in a cell depends on the position of its token, so a shift
// changes positions and no data. All of it is F32, whatever the type of the KV cache.
class so8t_token_memory : public llama_memory_i {
  public:
    // throws std::runtime_error: no memory for the cells
    so8t_token_memory(const llama_model & model, const llama_cparams & cparams, llama_memory_ptr base);

    llama_memory_context_ptr init_batch(llama_batch_allocr & balloc, uint32_t n_ubatch, bool embd_all) override;
    llama_memory_context_ptr init_full() override;
    llama_memory_context_ptr init_update(llama_context * lctx, bool optimize) override;

    bool get_can_shift() const override { return base->get_can_shift(); }

    void clear(bool data) override;

    bool seq_rm(llama_seq_id seq_id, llama_pos p0, llama_pos p1) override;
    void seq_cp(llama_seq_id seq_id_src, llama_seq_id seq_id_dst, llama_pos p0, llama_pos p1) override;
    void seq_keep(llama_seq_id seq_id) override;
    void seq_add(llama_seq_id seq_id, llama_pos p0, llama_pos p1, llama_pos shift) override;
    void seq_div(llama_seq_id seq_id, llama_pos p0, llama_pos p1, int d) override;

    llama_pos seq_pos_min(llama_seq_id seq_id) const override { return base->seq_pos_min(seq_id); }

    llama_pos seq_pos_max(llama_seq_id seq_id) const override { return base->seq_pos_max(seq_id); }

    std::map<ggml_backend_buffer_type_t, size_t> memory_breakdown() const override;

    void state_write(llama_io_write_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) const override;
    void state_read(llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) override;

    // the memory of the model itself
    llama_memory_i * get_base() const { return base.get(); }

    // puts the tokens of a batch into empty cells, whose indices are returned; fewer if there is no room for all
    std::vector<uint32_t> place(const llama_ubatch & ubatch);

    // cells that a graph has to look at: all that are used, and some more, so that graphs of many sizes are the same
    uint32_t n_used() const;

    uint32_t n_cells() const { return cells.size(); }

    // whether the token of a cell comes before the one at a position of a sequence, or is that one; of a window, if not 0
    bool sees(uint32_t cell, llama_seq_id seq_id, llama_pos pos, uint32_t window) const {
        return !cells.is_empty(cell) && cells.seq_has(cell, seq_id) && cells.pos_get(cell) <= pos &&
               (window == 0 || pos - cells.pos_get(cell) < (llama_pos) window);
    }

    // values of one head at the positions [p0, p1) of a sequence, [n_positions][n_labels]; fewer where there are not as many
    std::vector<float> read_values(llama_seq_id seq_id, llama_pos p0, llama_pos p1, const so8t_head & head) const;

    // of an attention stem: rows of each cell
    struct attention_cells {
        ggml_tensor * k = nullptr; // [head_dim, n_cells]
        ggml_tensor * v = nullptr; // [n_cells, head_dim]
    };

    const attention_cells & attention(size_t stem) const { return stems[stem]; }

    ggml_tensor * values = nullptr; // [n_stored, n_cells]; null: no head is read over texts

  private:
    using cell_list = std::vector<uint32_t>;

    template <typename Io>
    void each_piece(Io && io, const cell_list & list) const;
    cell_list cells_of(llama_seq_id seq_id, llama_pos p0, llama_pos p1) const;
    uint32_t own_cell(uint32_t cell, llama_seq_id seq_id);
    std::vector<llama_seq_id> read_seqs(llama_io_read_i & io, llama_seq_id seq_id) const;
    void read_cells(llama_io_read_i & io, llama_seq_id seq_id);
    void clear_data();

    llama_memory_ptr base;
    bool is_unified;    // the KV cache
    uint32_t n_seq_max; // sequences that it can have
    uint64_t hash;      // of the heads that keep something
    llama_kv_cells cells;
    std::vector<attention_cells> stems; // as in so8t_heads; empty ones of other forms
    ggml_context_ptr ctx;
    ggml_backend_buffer_ptr buffer;
};

// one batch on its way through a so8t_token_memory
class so8t_token_memory_context : public llama_memory_context_i {
  public:
    so8t_token_memory_context(
        so8t_token_memory & memory, llama_memory_context_ptr base, uint32_t n_kv, llama_memory_status status) :
        memory(memory),
        n_kv(n_kv),
        base(std::move(base)),
        status(status) {}

    bool next() override { return base->next(); }

    bool apply() override;

    const llama_ubatch & get_ubatch() const override { return base->get_ubatch(); }

    llama_memory_status get_status() const override { return llama_memory_status_combine(base->get_status(), status); }

    const llama_memory_context_i * get_base() const { return base.get(); }

    so8t_token_memory & memory;
    uint32_t n_kv;               // cells that the graph looks at
    std::vector<uint32_t> cells; // of the tokens of the batch

  private:
    llama_memory_context_ptr base;
    llama_memory_status status; // whether there is room for the batch
};

// call sites in llama.cpp

// the memory of a context, with cells beside it where a head needs them; throws std::runtime_error
llama_memory_ptr so8t_wrap_memory(llama_memory_i * base, const llama_model & model, const llama_cparams & cparams);

// what the graph of a model's architecture, and a context that shares its memory, expect
llama_memory_t so8t_base_memory(llama_memory_t memory);
const llama_memory_context_i * so8t_base_context(const llama_memory_context_i * context, llm_graph_result * res);
