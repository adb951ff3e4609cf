// SPDX-License-Identifier: Apache-2.0
// The results file of `kivi eval` has one JSON line for each measured cell. The key of a line is
// all settings that its figures depend on, so an interrupted grid continues where it stopped.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace kivi {

// Returns a hash of `text` as 16 hexadecimal digits (FNV-1a, Fowler, Noll and Vo).
std::string content_hash(std::string_view bytes);
// Returns a hash of a file or of a folder's files: of their names, their sizes, and 64 blocks of 32
// KiB spread over each. It tells models apart and does not prove them equal.
Result<std::string> model_hash(const std::string& path);

class EvalResults {
 public:
  // Reads the file `path` if it exists (empty: keep nothing). If the last line was cut off, it is
  // removed from the file. A line that is no result, or is of another model or text, is an error,
  // which names the file and the line. The file then stays as it is.
  static Result<EvalResults> open(const std::string& path, const std::string& model_hash,
                                  const std::string& text_hash);

  // Returns the figures measured under these settings, or null.
  const nlohmann::ordered_json* find(const nlohmann::ordered_json& settings) const;
  // Keeps the figures and appends their line to the file.
  Status add(const nlohmann::ordered_json& settings, const nlohmann::ordered_json& values);

 private:
  std::string path_, model_hash_, text_hash_;
  std::vector<nlohmann::ordered_json> lines_;  // {"model", "text", "settings", "values"}
};

}  // namespace kivi
