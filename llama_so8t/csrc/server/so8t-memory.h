#pragma once

#include <cstddef>
#include <list>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>

// Values by key, of which the ones that were not asked for longest are forgotten. All functions may be called from any
// thread.
template <typename T>
class so8t_memory {
  public:
    explicit so8t_memory(size_t n_max) :
        n_max(n_max) {}

    std::optional<T> find(const std::string & key) {
        std::lock_guard<std::mutex> lock(mutex);
        const auto it = places.find(key);
        if (it == places.end()) {
            return std::nullopt;
        }
        entries.splice(entries.begin(), entries, it->second);
        return it->second->second;
    }

    void keep(const std::string & key, T value) {
        std::lock_guard<std::mutex> lock(mutex);
        const auto it = places.find(key);
        if (it != places.end()) {
            entries.erase(it->second);
        }
        entries.emplace_front(key, std::move(value));
        places[key] = entries.begin();
        if (entries.size() > n_max) {
            places.erase(entries.back().first);
            entries.pop_back();
        }
    }

    void clear() {
        std::lock_guard<std::mutex> lock(mutex);
        entries.clear();
        places.clear();
    }

  private:
    using entry = std::pair<std::string, T>;

    std::mutex mutex;
    size_t n_max;
    std::list<entry> entries; // the newest first
    std::unordered_map<std::string, typename std::list<entry>::iterator> places;
};
