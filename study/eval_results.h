// SPDX-License-Identifier: Apache-2.0
// The results file of `kivi eval`: a JSON line a measured cell, keyed by all settings that its
// figures depend on, so that an interrupted grid goes on where it was.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace kivi {

// What a text or a model holds, as 16 hexadecimal digits (FNV-1a, Fowler, Noll and Vo).
std::string content_hash(std::string_view bytes);
// Of a file, or of a folder's files: names, sizes, and 64 blocks of 32 KiB spread over each. Enough
// to tell models apart, not to prove them equal.
Result<std::string> model_hash(const std::string& path);

class EvalResults {
 public:
  // Reads `path` where it exists; "": nothing is kept. A last line that was cut off is dropped
  // from it. Errors name the file and the line, and leave it as it is: what is no result, and
  // results of another model or text.
  static Result<EvalResults> open(const std::string& path, const std::string& model_hash,
                                  const std::string& text_hash);

  // The figures measured under these settings; null if there are none.
  const nlohmann::ordered_json* find(const nlohmann::ordered_json& settings) const;
  // Keeps figures, and writes their line.
  Status add(const nlohmann::ordered_json& settings, const nlohmann::ordered_json& values);

 private:
  std::string path_, model_hash_, text_hash_;
  std::vector<nlohmann::ordered_json> lines_;  // {"model", "text", "settings", "values"}
};

}  // namespace kivi
