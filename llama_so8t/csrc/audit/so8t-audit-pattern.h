#pragma once

#include "so8t-audit.h"

#include <string>

// "{model}" in the names of the files of an audit log: where several servers are started with the same settings, as
// Ollama and a router start one for each model, each of them has files of its own.

// throws std::invalid_argument: braces around anything else than "model"
void so8t_check_audit_pattern(const std::string & path);

// whether servers of two models with these settings can run beside each other; throws std::invalid_argument: the log
// of each model has a name of its own, but its checkpoint has not, or nothing stands behind "{model}"
bool so8t_is_audit_pattern(const so8t_audit_params & params);

// The settings with the name of a model in the place of "{model}". The name stays one part of a path, whatever it is:
// all bytes but letters, digits, '-', '_' and dots inside of it are as in an URL ("org/name:Q8_0" is
// "org%2Fname%3AQ8_0"), so that different names have different files.
so8t_audit_params so8t_audit_of_model(so8t_audit_params params, const std::string & model);
