#pragma once

struct llama_model;
struct llm_graph_context;
struct llm_graph_params;

// call sites in llama.cpp

// before build_arch_graph: from now on the graph is observed, where a head of the model reads a layer
void so8t_watch_layers(const llm_graph_params & params, const llama_model & model);

// adds the heads on top of the embeddings of every output; after build_arch_graph
void so8t_build_heads(llm_graph_context & llm, const llm_graph_params & params, const llama_model & model);
