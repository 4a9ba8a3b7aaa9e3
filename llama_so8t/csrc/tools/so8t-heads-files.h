#pragma once

#include <string>
#include <vector>

struct common_params;
struct llama_model;

// Heads files beside a model (docs/format.md), which --so8t-heads names.

#define SO8T_HEADS_OPTION "--so8t-heads"

struct so8t_heads_file {
    std::string path;
    std::string sha256; // of the file, once it is loaded
};

// The arguments of a program in which the values of a repeated --so8t-heads are one, joined by commas: llama.cpp knows
// only the last value of an option. argc and argv are changed, and valid as long as this.
class so8t_joined_args {
  public:
    so8t_joined_args(int & argc, char **& argv);
    so8t_joined_args(const so8t_joined_args &) = delete;

  private:
    std::string value;
    std::vector<char *> args;
};

// files between commas; throws std::invalid_argument: one cannot be read
std::vector<so8t_heads_file> so8t_heads_files(const std::string & text);

// Adds the heads of params.so8t.heads to the model that was just loaded, and remembers the hashes of the files: after a
// sleep they have to be the same. False: one cannot be loaded, which the library has said. Throws std::exception: a file
// was changed, or belongs to another base.
bool so8t_load_heads_files(llama_model * model, common_params & params);
