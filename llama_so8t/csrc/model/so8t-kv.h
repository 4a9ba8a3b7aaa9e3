#pragma once

#include <cstdint>
#include <string>
#include <vector>

struct gguf_context;

// typed reading and writing of GGUF metadata. A key of another type throws std::runtime_error with the
// key, the type found and the type expected; a missing key gives the default, or throws if required.

std::string so8t_kv_string(const gguf_context * ctx, const std::string & key, const std::string & def);
uint32_t so8t_kv_uint(const gguf_context * ctx, const std::string & key, uint32_t def);
int32_t so8t_kv_int(const gguf_context * ctx, const std::string & key, int32_t def);
float so8t_kv_float(const gguf_context * ctx, const std::string & key, float def);

std::vector<std::string> so8t_kv_strings(const gguf_context * ctx, const std::string & key, bool required);
std::vector<float> so8t_kv_floats(const gguf_context * ctx, const std::string & key, bool required);
std::vector<int32_t> so8t_kv_ints(const gguf_context * ctx, const std::string & key, bool required);

// version of the format that a file says, 1 where it says none; one that this program does not read throws
uint32_t so8t_kv_version(const gguf_context * ctx);

void so8t_set_strings(gguf_context * ctx, const std::string & key, const std::vector<std::string> & values);

// names of the format that a value may have

using so8t_names = std::vector<std::string>;

// index of value among them, -1 if it is none of them
int so8t_index_of(const so8t_names & names, const std::string & value);

// "a, b or c", for errors
std::string so8t_one_of(const so8t_names & names);

// Text of a file in an error: one short line, also where it is no UTF-8.
std::string so8t_shown(const std::string & text);

// valid UTF-8, and not empty
bool so8t_is_text(const std::string & text);

// what a head or stem may be called: a text whose ASCII characters are letters, digits, '_' and '-'
bool so8t_is_name(const std::string & text);

// index of a string value among names; another one throws
int so8t_kv_name(const gguf_context * ctx, const std::string & key, const so8t_names & names, int def);
