// SPDX-License-Identifier: Apache-2.0
#include "base/json_file.h"

#include <fmt/format.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/regular_file.h"

namespace kivi {

using nlohmann::json;

namespace {

// Brackets are counted before the parser runs, because building and destroying a document that is
// a million levels deep is what has to be prevented.
bool deeper_than(std::string_view text, int depth_max) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > depth_max) return true;
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return false;
}

std::string shown(const json* value) {
  if (value == nullptr) return "absent";
  std::string text = value->dump(-1, ' ', true, json::error_handler_t::replace);
  constexpr size_t kShownMax = 60;
  if (text.size() > kShownMax) text = text.substr(0, kShownMax) + "...";
  return text;
}

// What an exception of the library says, without its head ("[json.exception...] "), which means
// nothing to a user.
std::string message_of(const json::exception& e) {
  const std::string message = e.what();
  const size_t head = message.find("] ");
  return head == message.npos ? message : message.substr(head + 2);
}

std::optional<int64_t> as_integer(const json& value) {
  if (value.is_number_unsigned()) {
    const auto u = value.get<uint64_t>();
    if (u <= uint64_t(INT64_MAX)) return int64_t(u);
  } else if (value.is_number_integer()) {
    return value.get<int64_t>();
  }
  return std::nullopt;
}

std::optional<int32_t> as_token_id(const json& value) {
  const auto id = as_integer(value);
  if (!id || *id < 0 || *id > INT32_MAX) return std::nullopt;
  return int32_t(*id);
}

}  // namespace

Result<std::string> read_text_file(const std::string& path, int64_t bytes_max) {
  std::error_code status;
  if (!std::filesystem::exists(path, status))
    return Error{ErrorCode::not_found, fmt::format("{}: no such file", path)};
  KIVI_ASSIGN_OR_RETURN(const RegularFile file, RegularFile::open(path));
  if (file.bytes() > bytes_max)
    return Error{ErrorCode::invalid,
                 fmt::format("{}: is {} bytes, must be at most {}", path, file.bytes(), bytes_max)};
  return file.read();
}

Result<json> parse_json(std::string_view text, const std::string& name) {
  if (deeper_than(text, kMaxJsonDepth))
    return Error{ErrorCode::invalid,
                 fmt::format("{}: JSON is nested more than {} levels deep", name, kMaxJsonDepth)};
  try {
    return json::parse(text.begin(), text.end());
  } catch (const json::exception& e) {
    return Error{ErrorCode::invalid, fmt::format("{}: is not valid JSON: {}", name, message_of(e))};
  }
}

Result<json> read_json_file(const std::string& path) {
  KIVI_ASSIGN_OR_RETURN(const std::string text, read_text_file(path, kMaxJsonFileBytes));
  return parse_json(text, path);
}

JsonReader::JsonReader(std::string file, const json& object)
    : file_(std::move(file)), object_(&object), error_(std::make_shared<std::optional<Error>>()) {
  if (!object.is_object())
    *error_ = Error{ErrorCode::invalid,
                    fmt::format("{}: is {}, must be a JSON object", file_, shown(&object))};
}

const json* JsonReader::find(const std::string& key) const {
  if (!object_->is_object()) return nullptr;
  const auto found = object_->find(key);
  return found == object_->end() || found->is_null() ? nullptr : &*found;
}

const json* JsonReader::require(const std::string& key, const char* expected) {
  const json* value = find(key);
  if (value == nullptr) reject(key, expected);
  return value;
}

bool JsonReader::has(const std::string& key) const { return find(key) != nullptr; }

bool JsonReader::is_null(const std::string& key) const {
  return object_->is_object() && object_->contains(key) && find(key) == nullptr;
}

void JsonReader::reject(const std::string& key, const std::string& expected, ErrorCode code) {
  if (error_->has_value()) return;
  *error_ = Error{
      code, fmt::format("{}: {}{} is {}, {}", file_, prefix_, key, shown(find(key)), expected),
      prefix_ + key};
}

int JsonReader::integer(const std::string& key, int min, int max) {
  const json* value = find(key);
  const auto n = value == nullptr ? std::nullopt : as_integer(*value);
  if (n && *n >= min && *n <= max) return int(*n);
  reject(key, fmt::format("must be an integer in [{}, {}]", min, max));
  return min;
}

double JsonReader::number(const std::string& key, double min, double max) {
  const json* value = find(key);
  if (value != nullptr && value->is_number()) {
    const double x = value->get<double>();
    if (x >= min && x <= max) return x;  // false for NaN
  }
  reject(key, fmt::format("must be a number in [{}, {}]", min, max));
  return min;
}

std::string JsonReader::string(const std::string& key) {
  const json* value = require(key, "must be a string");
  if (value == nullptr) return {};
  if (value->is_string()) return value->get<std::string>();
  reject(key, "must be a string");
  return {};
}

int JsonReader::integer_or(const std::string& key, int fallback, int min, int max) {
  return has(key) ? integer(key, min, max) : fallback;
}

double JsonReader::number_or(const std::string& key, double fallback, double min, double max) {
  return has(key) ? number(key, min, max) : fallback;
}

bool JsonReader::boolean_or(const std::string& key, bool fallback) {
  const json* value = find(key);
  if (value == nullptr) return fallback;
  if (value->is_boolean()) return value->get<bool>();
  reject(key, "must be true or false");
  return fallback;
}

std::string JsonReader::string_or(const std::string& key, const std::string& fallback) {
  return has(key) ? string(key) : fallback;
}

std::vector<int32_t> JsonReader::ids(const std::string& key) {
  constexpr size_t kIdsMax = 64;
  constexpr const char* kExpected = "must be a token id or a list of at most 64 token ids";
  std::vector<int32_t> ids;
  const json* value = find(key);
  if (value == nullptr) return ids;
  const json list = value->is_array() ? *value : json::array({*value});
  for (const json& entry : list) {
    const auto id = as_token_id(entry);
    if (!id || ids.size() == kIdsMax) {
      reject(key, kExpected);
      return {};
    }
    ids.push_back(*id);
  }
  return ids;
}

std::vector<std::string> JsonReader::strings(const std::string& key) {
  std::vector<std::string> strings;
  const json* value = find(key);
  if (value == nullptr) return strings;
  if (!value->is_array()) reject(key, "must be a list of strings");
  for (const json& entry : *value) {
    if (!entry.is_string()) {
      reject(key, "must be a list of strings");
      return {};
    }
    strings.push_back(entry.get<std::string>());
  }
  return strings;
}

std::vector<double> JsonReader::numbers(const std::string& key, double min, double max) {
  std::vector<double> numbers;
  const json* value = find(key);
  if (value != nullptr && value->is_array())
    for (const json& entry : *value)
      if (entry.is_number() && entry.get<double>() >= min && entry.get<double>() <= max)
        numbers.push_back(entry.get<double>());
  if (value == nullptr || !value->is_array() || numbers.size() != value->size())
    reject(key, fmt::format("must be a list of numbers in [{}, {}]", min, max));
  return numbers;
}

JsonReader JsonReader::object(const std::string& key) {
  static const json kNothing = json::object();
  const json* value = require(key, "must be an object");
  if (value != nullptr && !value->is_object()) {
    reject(key, "must be an object");
    value = nullptr;
  }
  JsonReader nested(file_, value == nullptr ? kNothing : *value);
  nested.prefix_ = prefix_ + key + ".";
  nested.error_ = error_;
  return nested;
}

Status JsonReader::status() const {
  if (error_->has_value()) return **error_;
  return ok_status();
}

}  // namespace kivi
