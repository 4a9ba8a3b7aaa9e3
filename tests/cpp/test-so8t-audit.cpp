// The audit log where no request gets it: lines longer than readers accept, and a file system that fails.

#include "so8t-audit.h"

#include "json.h"

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include <sys/resource.h>

namespace fs = std::filesystem;

static int n_passed = 0;
static int n_failed = 0;

#define CHECK(x) do { if (x) { n_passed++; } else { n_failed++; fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #x); } } while (0)

static std::vector<std::string> read_lines(const std::string & path) {
    std::vector<std::string> lines;
    std::ifstream file(path);
    for (std::string line; std::getline(file, line); ) {
        lines.push_back(line);
    }
    return lines;
}

static common_json request(size_t n_text, size_t n_verdicts) {
    common_json verdicts = common_json::array();
    for (size_t i = 0; i < n_verdicts; ++i) {
        verdicts.push_back({{"part", "answer"}, {"position", i}, {"head", "safety"}, {"label", i % 2 ? "safe" : "unsafe"}});
    }
    return common_json::object({
        {"request",  "r"},
        {"prompt",   {{"n_bytes", n_text}, {"text", std::string(n_text, 'x')}}},
        {"answer",   {{"n_bytes", n_text}, {"text", std::string(n_text, 'y')}}},
        {"verdicts", verdicts},
        {"decision", "refuse"},
    });
}

// no file of this process grows beyond n bytes
static void limit(rlim_t n) {
    rlimit values;
    getrlimit(RLIMIT_FSIZE, &values);
    values.rlim_cur = n;
    setrlimit(RLIMIT_FSIZE, &values);
}

static void test_long_lines(const so8t_audit_params & params) {
    const size_t n_max = 16 << 20;
    so8t_audit audit(params, nullptr, nullptr);

    CHECK(audit.append("request", request(1 << 20, 2), false));
    CHECK(audit.append("request", request(9 << 20, 2), false));
    CHECK(audit.append("request", request(1 << 20, 400000), false));
    CHECK(audit.append("request", common_json::object(), true));
    CHECK(!audit.append("request", common_json::object({{"request", std::string(n_max, 'x')}}), true));
    CHECK(audit.failed());
    CHECK(audit.append("request", common_json::object(), true));
    CHECK(!audit.failed());

    const auto lines = read_lines(params.file);
    CHECK(lines.size() == 6);
    for (const auto & line : lines) {
        CHECK(line.size() < n_max);
    }
    const common_json texts    = common_json::parse(lines.at(1));
    const common_json no_texts = common_json::parse(lines.at(2));
    const common_json cut      = common_json::parse(lines.at(3));
    CHECK(texts.at("prompt").contains("text") && texts.at("answer").contains("text"));
    CHECK(!no_texts.at("prompt").contains("text") && no_texts.at("prompt").at("n_bytes").get<size_t>() == 9 << 20);
    CHECK(no_texts.at("verdicts").size() == 2 && !no_texts.contains("verdicts_omitted"));
    CHECK(cut.at("decision") == "refuse" && cut.at("verdicts").size() > 100000);
    CHECK(cut.at("verdicts").size() + cut.at("verdicts_omitted").get<size_t>() == 400000);
    CHECK(lines.at(3).size() > n_max - 4096); // as many as fit

    CHECK(audit.tail(2).size() == 2);
    CHECK(audit.tail(1000).size() >= 3);
}

// a limit at every byte of a line and of the checkpoint: nothing of the line is left, and the next one follows
static void test_partial_writes(const so8t_audit_params & params) {
    so8t_audit audit(params, nullptr, nullptr);
    auto last = audit.append("request", request(10, 2), true);
    CHECK(last.has_value());
    const uint64_t size   = fs::file_size(params.file);
    const size_t   n_line = read_lines(params.file).back().size() + 1;
    for (uint64_t n = size; n < size + n_line; n += 7) {
        limit(n);
        CHECK(!audit.append("request", request(10, 2), true));
        limit(RLIM_INFINITY);
        CHECK(fs::file_size(params.file) == size);
        CHECK(audit.last().hash == last->hash);
    }
    last = audit.append("request", request(10, 2), true);
    CHECK(last.has_value() && last->seq == audit.last().seq);
}

// a rotation that cannot write its last line is done later
static void test_failing_rotation(so8t_audit_params params) {
    params.max_size = fs::file_size(params.file);
    so8t_audit audit(params, nullptr, nullptr);
    limit(fs::file_size(params.file) + 20);
    CHECK(!audit.append("request", request(10, 2), true));
    limit(RLIM_INFINITY);
    CHECK(!fs::exists(params.file + ".1"));

    const auto last = audit.append("request", request(10, 2), true);
    CHECK(last.has_value());
    CHECK(fs::exists(params.file + ".1"));
    CHECK(read_lines(params.file).size() == 1);
}

int main() {
    std::string folder = (fs::temp_directory_path() / "test-so8t-audit-XXXXXX").string();
    if (!mkdtemp(folder.data())) {
        perror("mkdtemp");
        return 1;
    }
    so8t_audit_params params;
    params.text            = true;
    params.file            = folder + "/long.jsonl";
    params.checkpoint_file = folder + "/note";
    test_long_lines(params);

    params.file            = folder + "/short.jsonl";
    params.checkpoint_file = folder + "/short-note";
    test_partial_writes(params);
    test_failing_rotation(params);

    fs::remove_all(folder);
    printf("%d passed, %d failed\n", n_passed, n_failed);
    return n_failed > 0;
}
