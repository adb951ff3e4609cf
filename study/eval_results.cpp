// SPDX-License-Identifier: Apache-2.0
#include "study/eval_results.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace kivi {

namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

// Blocks of each file that are hashed, evenly spread. They cover a file of at most 2 MiB.
constexpr int64_t kHashedBlocks = 64;
constexpr int64_t kBlockBytes = 1 << 15;

constexpr std::string_view kLineBegins = "{\"model\":";  // every line, as `add` writes it

struct Fnv1a {
  uint64_t state = 0xcbf29ce484222325u;

  void add(std::string_view bytes) {
    for (const char c : bytes) state = (state ^ uint8_t(c)) * 0x100000001b3u;
  }
  std::string hex() const { return fmt::format("{:016x}", state); }
};

Error unreadable(const std::string& path) {
  return Error{ErrorCode::not_found, fmt::format("{}: cannot be read", path), "model"};
}

Status add_file(Fnv1a& hash, const fs::path& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  const int64_t size = file ? int64_t(file.tellg()) : -1;
  if (size < 0) return unreadable(path.string());
  hash.add(fmt::format("{} {}\n", path.filename().string(), size));
  std::string bytes(size_t(std::min(size, kBlockBytes)), '\0');
  for (int64_t i = 0; i < kHashedBlocks; ++i) {
    file.seekg((size - int64_t(bytes.size())) * i / (kHashedBlocks - 1));
    if (!file.read(bytes.data(), std::streamsize(bytes.size()))) return unreadable(path.string());
    hash.add(bytes);
  }
  return ok_status();
}

// What is wrong with a line of the file; "" if nothing.
std::string complaint(const Json& line, const std::string& model, const std::string& text) {
  if (!line.is_object() || !line.contains("settings") || !line.contains("values") ||
      !line.value("model", Json()).is_string() || !line.value("text", Json()).is_string())
    return "is no result of kivi eval";
  const auto other = [&](const char* what, const std::string& now) {
    return fmt::format("was measured with another {} (hash {}, now {}); name another --results",
                       what, line[what].get<std::string>(), now);
  };
  if (line["model"] != model) return other("model", model);
  if (line["text"] != text) return other("text", text);
  return "";
}

}  // namespace

std::string content_hash(std::string_view bytes) {
  Fnv1a hash;
  hash.add(bytes);
  return hash.hex();
}

Result<std::string> model_hash(const std::string& path) {
  std::error_code error;
  std::vector<fs::path> files;
  if (fs::is_directory(path, error)) {
    for (const fs::directory_entry& entry : fs::directory_iterator(path, error))
      if (entry.is_regular_file(error)) files.push_back(entry.path());
    std::ranges::sort(files);
  } else {
    files.emplace_back(path);
  }
  Fnv1a hash;
  for (const fs::path& file : files) KIVI_RETURN_IF_ERROR(add_file(hash, file));
  return hash.hex();
}

Result<EvalResults> EvalResults::open(const std::string& path, const std::string& model_hash,
                                      const std::string& text_hash) {
  EvalResults results;
  results.path_ = path;
  results.model_hash_ = model_hash;
  results.text_hash_ = text_hash;
  std::ifstream file(path, std::ios::binary);
  if (path.empty() || !file) return results;
  std::ostringstream read;
  read << file.rdbuf();
  const std::string all = read.str();
  const size_t whole = all.rfind('\n') + 1;  // npos + 1 = 0: not one line is whole
  std::istringstream lines(all.substr(0, whole));
  std::string line;
  int number = 1;
  const auto refused = [&](const std::string& wrong) {
    return Error{ErrorCode::invalid, fmt::format("--results {}, line {}: {}", path, number, wrong),
                 "results"};
  };
  for (; std::getline(lines, line); ++number) {
    Json parsed = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    const std::string wrong = complaint(parsed, model_hash, text_hash);
    if (!wrong.empty()) return refused(wrong);
    results.lines_.push_back(std::move(parsed));
  }
  if (whole == all.size()) return results;
  // Cut last: only what every line says is a results file may lose its unfinished end.
  const std::string_view rest = std::string_view(all).substr(whole);
  if (!kLineBegins.starts_with(rest.substr(0, kLineBegins.size())))
    return refused("is no result of kivi eval");
  std::error_code error;
  fs::resize_file(path, whole, error);
  if (error)
    return Error{ErrorCode::invalid, fmt::format("--results {}: {}", path, error.message()),
                 "results"};
  return results;
}

const Json* EvalResults::find(const Json& settings) const {
  const auto line = std::ranges::find_if(
      lines_, [&](const Json& candidate) { return candidate["settings"] == settings; });
  return line == lines_.end() ? nullptr : &(*line)["values"];
}

Status EvalResults::add(const Json& settings, const Json& values) {
  lines_.push_back(Json{
      {"model", model_hash_}, {"text", text_hash_}, {"settings", settings}, {"values", values}});
  if (path_.empty()) return ok_status();
  std::ofstream file(path_, std::ios::app);
  if (!(file << lines_.back().dump() << '\n' << std::flush))
    return Error{ErrorCode::invalid, fmt::format("--results {}: cannot be written", path_),
                 "results"};
  return ok_status();
}

}  // namespace kivi
