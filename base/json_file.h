// Reading the JSON files of a model folder: bounded in size and depth, and every error names the
// file, the key, its value and what was expected.
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

// A JSON file larger than this is not a model's. A text nested deeper than this is refused, because
// the parser recurses.
inline constexpr int64_t kMaxJsonFileBytes = 256 << 20;
inline constexpr int kMaxJsonDepth = 64;

// The whole of a text file of at most `bytes_max` bytes. Errors: not_found, invalid; both name the
// path.
Result<std::string> read_text_file(const std::string& path, int64_t bytes_max);

// Parses one JSON document nested at most kMaxJsonDepth deep. `name` stands for the text in errors.
Result<nlohmann::json> parse_json(std::string_view text, const std::string& name);

// read_text_file (kMaxJsonFileBytes), then parse_json.
Result<nlohmann::json> read_json_file(const std::string& path);

// Typed reading of one JSON object. The first mistake is kept and the getters return harmless
// values after it, so that a caller reads all its keys in a row and asks status() once at the end.
// A key whose value is null counts as absent. Borrows the object.
class JsonReader {
 public:
  JsonReader(std::string file, const nlohmann::json& object);

  bool has(const std::string& key) const;
  // Is it there, and null? For the few keys whose absence means something else.
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
  // A token id or a list of at most 64 of them, each in [0, 2^31); absent: none.
  std::vector<int32_t> ids(const std::string& key);
  // A list of strings; absent: none.
  std::vector<std::string> strings(const std::string& key);
  // The object under `key`, which must be present; its errors are this reader's errors.
  JsonReader object(const std::string& key);

  // Records a mistake that the getters cannot see: "<file>: <key> is <value>, <expected>".
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
