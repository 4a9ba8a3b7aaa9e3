#pragma once

#include "so8t-escalations.h"
#include "so8t-outbox.h"
#include "so8t-readings.h"
#include "so8t-verdict.h"

#include "server-common.h"

#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>

// What the verdicts of a server were, in numbers, for GET /so8t and /metrics. All functions may be called from any thread.
class so8t_counters {
  public:
    // what other parts of the server count
    struct others {
        so8t_readings::counts texts;
        size_t n_pending = 0;                       // held answers
        std::optional<so8t_outbox::counts> webhook; // nothing: there is none
        std::optional<so8t_outbox::counts> otlp;
        bool audit_failed = false;
    };

    void add(const so8t_verdict & verdict);
    void add(so8t_escalation_status status); // a held answer was decided

    json to_json(const so8t_readings::counts & texts) const;
    std::string prometheus(const others & others) const;

  private:
    mutable std::mutex mutex;
    std::map<std::string, uint64_t> n_decisions, n_enforced, n_escalations;
    std::map<std::tuple<std::string, std::string, std::string>, uint64_t> n_labels; // part, head, label
    uint64_t n_read = 0;                                                            // positions
    uint64_t t_us   = 0;
};
