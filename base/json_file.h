// SPDX-License-Identifier: Apache-2.0
// Reads the JSON files of a model folder. Size and depth are bounded. Every error names the file,
// the key, its value and what it must be.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace kivi {

// No model has a JSON file larger than this. A text nested deeper than this is refused, because the
// parser recurses.
inline constexpr int64_t kMaxJsonFileBytes = 256 << 20;
inline constexpr int kMaxJsonDepth = 64;

// Returns the contents of a text file of at most `bytes_max` bytes. The errors, `not_found` and
// `invalid`, name the path.
Result<std::string> read_text_file(const std::string& path, int64_t bytes_max);

// Parses one JSON document nested at most kMaxJsonDepth deep. Errors call the document `name`.
Result<nlohmann::json> parse_json(std::string_view text, const std::string& name);

// read_text_file (kMaxJsonFileBytes), then parse_json.
Result<nlohmann::json> read_json_file(const std::string& path);

// Reads the members of one JSON object with their types. The first mistake is kept, and the getters
// return harmless values after it. So a caller reads all keys in a row and asks status() once at
// the end. A key whose value is null counts as absent. The object must outlive the reader.
class JsonReader {
 public:
  JsonReader(std::string file, const nlohmann::json& object);

  bool has(const std::string& key) const;
  // Returns true if the key is there and null. Only a few keys treat this differently from absence.
  bool is_null(const std::string& key) const;

  // Required keys. Bounds are inclusive.
  int integer(const std::string& key, int min, int max);
  double number(const std::string& key, double min, double max);
  std::string string(const std::string& key);

  // Keys that may be absent.
  int integer_or(const std::string& key, int fallback, int min, int max);
  double number_or(const std::string& key, double fallback, double min, double max);
  bool boolean_or(const std::string& key, bool fallback);
  std::string string_or(const std::string& key, const std::string& fallback);
  // Returns a token id, or a list of at most 64 of them, each in [0, 2^31). Empty if absent.
  std::vector<int32_t> ids(const std::string& key);
  // Returns a list of strings. Empty if absent.
  std::vector<std::string> strings(const std::string& key);
  // Returns a list of numbers. Required.
  std::vector<double> numbers(const std::string& key, double min, double max);
  // Returns a reader of the object under `key`, which must be present. Its errors are this reader's
  // errors too.
  JsonReader object(const std::string& key);

  // Records a mistake that the getters cannot see, as "<file>: <key> is <value>, <expected>".
  void reject(const std::string& key, const std::string& expected,
              ErrorCode code = ErrorCode::invalid);

  Status status() const;
  const std::string& file() const { return file_; }

 private:
  const nlohmann::json* find(const std::string& key) const;
  const nlohmann::json* require(const std::string& key, const char* expected);

  std::string file_;
  std::string prefix_;  // "rope_parameters." in a nested reader
  const nlohmann::json* object_;
  std::shared_ptr<std::optional<Error>> error_;  // shared with nested readers
};

}  // namespace kivi
