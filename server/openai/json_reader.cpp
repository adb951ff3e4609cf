#include "server/openai/json_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/json_file.h"

namespace kivi {
namespace {

using nlohmann::json;

// Watches the parser's events: depth, duplicate keys, and which top-level field it is in.
class ParseWatch {
 public:
  // nlohmann's callback; false drops the value, which keeps a bomb from costing memory.
  bool on_event(int depth, json::parse_event_t event, const json& parsed) {
    switch (event) {
      case json::parse_event_t::object_start:
        keys_.emplace_back();
        [[fallthrough]];
      case json::parse_event_t::array_start:
        if (depth >= kMaxJsonDepth) too_deep_ = true;
        break;
      case json::parse_event_t::key: {
        const std::string& key = parsed.get_ref<const std::string&>();
        if (depth == 1) field_ = key;
        if (!keys_.back().insert(key).second && duplicate_.empty()) duplicate_ = key;
        break;
      }
      case json::parse_event_t::object_end:
        keys_.pop_back();
        [[fallthrough]];
      case json::parse_event_t::array_end:
      case json::parse_event_t::value:
        if (depth == 1) field_.clear();
        break;
    }
    return !too_deep_;
  }

  bool too_deep() const { return too_deep_; }
  const std::string& duplicate() const { return duplicate_; }
  const std::string& field() const { return field_; }

 private:
  std::vector<std::set<std::string>> keys_;  // of the open objects
  std::string field_;                        // the top-level field whose value is being read
  std::string duplicate_;
  bool too_deep_ = false;
};

const char* type_name(const json& value) {
  if (value.is_number_integer()) return "integer";
  if (value.is_number_float()) return "number";
  return value.type_name();
}

}  // namespace

Result<json> parse_request_json(std::string_view body) {
  ParseWatch watch;
  json parsed;
  try {
    parsed = json::parse(body, [&](int depth, json::parse_event_t event, json& value) {
      return watch.on_event(depth, event, value);
    });
  } catch (const json::exception& e) {
    // The message quotes the input; its head ("[json.exception.…] ") means nothing to a user.
    std::string message = e.what();
    if (const size_t head = message.find("] "); head != std::string::npos)
      message = message.substr(head + 2);
    if (message.size() > 300) message.resize(300);
    return Error{ErrorCode::invalid, "the body is not valid JSON: " + message, watch.field()};
  }
  if (watch.too_deep())
    return Error{ErrorCode::invalid,
                 fmt::format("the body nests deeper than {} levels", kMaxJsonDepth)};
  if (!watch.duplicate().empty())
    return Error{ErrorCode::invalid,
                 fmt::format("the field \"{}\" stands twice in one object", watch.duplicate()),
                 watch.duplicate()};
  if (!parsed.is_object())
    return Error{ErrorCode::invalid,
                 fmt::format("the body is of type {}, must be an object", type_name(parsed))};
  return parsed;
}

std::string describe(const json& value) {
  constexpr size_t kShown = 60;
  if (value.is_structured()) return fmt::format("of type {}", value.type_name());
  std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
  if (text.size() > kShown) text = text.substr(0, kShown) + "...";
  return fmt::format("{} ({})", text, type_name(value));
}

std::optional<int64_t> as_integer(const json& value, int64_t lowest, int64_t highest) {
  if (!value.is_number_integer()) return std::nullopt;
  // Above int64 only as unsigned.
  if (value.is_number_unsigned() &&
      value.get<uint64_t>() > uint64_t(std::numeric_limits<int64_t>::max()))
    return std::nullopt;
  const int64_t number = value.get<int64_t>();
  if (number < lowest || number > highest) return std::nullopt;
  return number;
}

JsonFields::JsonFields(const json& object, std::string path)
    : object_(object), path_(std::move(path)) {}

const json* JsonFields::find(const char* name) {
  asked_.insert(name);
  if (!ok()) return nullptr;
  const auto it = object_.find(name);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

const json* JsonFields::raw(const char* name) { return find(name); }

void JsonFields::fail(Error error) {
  if (!error_) error_ = std::move(error);
}

void JsonFields::fail(const char* name, const std::string& message) {
  fail(Error{ErrorCode::invalid, path_ + name + " " + message, path_ + name});
}

Status JsonFields::status() const { return error_ ? Status(*error_) : ok_status(); }

std::vector<std::string> JsonFields::unknown() const {
  std::vector<std::string> names;
  for (const auto& item : object_.items())
    if (!asked_.contains(item.key())) names.push_back(path_ + item.key());
  return names;
}

bool JsonFields::boolean(const char* name, bool otherwise) {
  const json* value = find(name);
  if (value == nullptr) return otherwise;
  if (!value->is_boolean()) {
    fail(name, fmt::format("is {}, must be true or false", describe(*value)));
    return otherwise;
  }
  return value->get<bool>();
}

int JsonFields::integer(const char* name, int otherwise, int lowest, int highest) {
  const json* value = find(name);
  if (value == nullptr) return otherwise;
  const auto number = as_integer(*value, lowest, highest);
  if (!number) {
    fail(name,
         fmt::format("is {}, must be an integer in [{}, {}]", describe(*value), lowest, highest));
    return otherwise;
  }
  return int(*number);
}

std::optional<int64_t> JsonFields::int64(const char* name) {
  const json* value = find(name);
  if (value == nullptr) return std::nullopt;
  const auto number =
      as_integer(*value, std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max());
  if (!number) fail(name, fmt::format("is {}, must be a 64-bit integer", describe(*value)));
  return number;
}

float JsonFields::number(const char* name, float otherwise) {
  const json* value = find(name);
  if (value == nullptr) return otherwise;
  if (!value->is_number() || !std::isfinite(value->get<float>())) {
    fail(name, fmt::format("is {}, must be a finite number", describe(*value)));
    return otherwise;
  }
  return value->get<float>();
}

std::optional<std::string> JsonFields::text(const char* name) {
  const json* value = find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) {
    fail(name, fmt::format("is {}, must be a string", describe(*value)));
    return std::nullopt;
  }
  return value->get<std::string>();
}

std::vector<int32_t> JsonFields::integers(const char* name, size_t count_max) {
  const json* value = find(name);
  if (value == nullptr) return {};
  if (!value->is_array()) {
    fail(name, fmt::format("is {}, must be a list of integers", describe(*value)));
    return {};
  }
  if (value->size() > count_max) {
    fail(name, fmt::format("has {} entries, at most {} are taken", value->size(), count_max));
    return {};
  }
  std::vector<int32_t> out;
  out.reserve(value->size());
  for (const json& entry : *value) {
    const auto number =
        as_integer(entry, std::numeric_limits<int32_t>::min(), std::numeric_limits<int32_t>::max());
    if (!number) {
      fail(name, fmt::format("[{}] is {}, must be a token id", out.size(), describe(entry)));
      return {};
    }
    out.push_back(int32_t(*number));
  }
  return out;
}

std::vector<std::string> JsonFields::texts(const char* name, size_t count_max) {
  const json* value = find(name);
  if (value == nullptr) return {};
  if (value->is_string()) return {value->get<std::string>()};
  if (!value->is_array()) {
    fail(name, fmt::format("is {}, must be a string or a list of strings", describe(*value)));
    return {};
  }
  if (value->size() > count_max) {
    fail(name, fmt::format("has {} entries, at most {} are taken", value->size(), count_max));
    return {};
  }
  std::vector<std::string> out;
  for (const json& entry : *value) {
    if (!entry.is_string()) {
      fail(name, fmt::format("[{}] is {}, must be a string", out.size(), describe(entry)));
      return {};
    }
    out.push_back(entry.get<std::string>());
  }
  return out;
}

}  // namespace kivi
