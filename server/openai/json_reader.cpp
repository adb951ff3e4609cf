// SPDX-License-Identifier: Apache-2.0
#include "server/openai/json_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/json_file.h"
#include "engine/limits.h"
#include "server/openai/long_values.h"

namespace kivi {
namespace {

using nlohmann::json;

// Builds the DOM from the parser's events. Each event costs constant time (a key: logarithmic in
// its object), so that reading is linear in the body's length. False from an event ends the
// parsing.
class DomBuilder {
 public:
  using number_integer_t = json::number_integer_t;
  using number_unsigned_t = json::number_unsigned_t;
  using number_float_t = json::number_float_t;
  using string_t = json::string_t;
  using binary_t = json::binary_t;

  // `outline`: what stands in the places of the long values that the parser does not see; null =
  // the parser sees all. They are moved out of it.
  explicit DomBuilder(const std::stop_token& stop, BodyOutline* outline = nullptr)
      : stop_(stop), outline_(outline) {}

  bool null() { return scalar(nullptr); }
  bool boolean(bool value) { return scalar(value); }
  bool number_integer(number_integer_t value) { return scalar(value); }
  bool number_unsigned(number_unsigned_t value) { return scalar(value); }
  bool number_float(number_float_t value, const string_t& text) {
    if (!std::isfinite(value))
      return fail({ErrorCode::invalid,
                   fmt::format("the body has the number {}, which is not finite",
                               text.substr(0, kShownBytes)),
                   field_});
    return scalar(value);
  }
  bool string(string_t& value) {
    put_long_text(value);
    return count_node() && scalar(std::move(value));
  }
  bool binary(binary_t&) { return false; }  // JSON has none

  bool start_object(size_t) { return open(json::object()); }
  bool start_array(size_t) { return open(json::array()) && put_long_list(); }
  bool end_object() { return close(); }
  bool end_array() { return close(); }

  bool key(string_t& name) {
    put_long_text(name);
    if (open_.size() == 1) field_ = name;
    if (!count_node()) return false;
    // Readers of JSON resolve a name that stands twice differently.
    const auto [it, inserted] = open_.back()->emplace(std::move(name), nullptr);
    if (!inserted)
      return fail({ErrorCode::invalid,
                   fmt::format("the field {} stands twice in one object", describe(json(it.key()))),
                   it.key()});
    member_ = &*it;
    return true;
  }

  bool parse_error(size_t, const std::string&, const json::exception& e) {
    // The message quotes the input; its head ("[json.exception.…] ") means nothing to a user.
    std::string message = e.what();
    if (const size_t head = message.find("] "); head != std::string::npos)
      message = message.substr(head + 2);
    if (message.size() > 300) message.resize(300);
    return fail({ErrorCode::invalid, "the body is not valid JSON: " + message, field_});
  }

  Result<ParsedJson> take() {
    if (error_) return *error_;
    return std::move(root_);
  }

 private:
  static constexpr size_t kShownBytes = 60;

  bool fail(Error error) {
    if (error_) return false;
    error_ = std::move(error);
    error_->field = error_->field.substr(0, kShownBytes);  // names may be as long as the body
    return false;
  }

  // Strings, names, lists and objects each cost an allocation of their own.
  bool count_node() {
    if (++nodes_ <= kMaxJsonNodes) return true;
    return fail(
        {ErrorCode::invalid,
         fmt::format("the body has more than {} strings, names, lists and objects", kMaxJsonNodes),
         field_});
  }

  bool count_values(size_t count) {
    values_ += count;
    if (values_ <= kMaxJsonValues) return true;
    return fail({ErrorCode::invalid,
                 fmt::format("the body has more than {} values", kMaxJsonValues), field_});
  }

  // Gives a string that is a long text its characters.
  void put_long_text(string_t& value) {
    const size_t number = texts_++;
    if (outline_ == nullptr || long_texts_ == outline_->texts.size()) return;
    BodyOutline::Text& text = outline_->texts[long_texts_];
    if (text.number != number) return;
    value = std::move(text.value);
    ++long_texts_;
  }

  // Gives the list that has just been opened its values, if it is a long one.
  bool put_long_list() {
    const size_t number = lists_++;
    if (outline_ == nullptr || long_lists_ == outline_->lists.size()) return true;
    BodyOutline::List& list = outline_->lists[long_lists_];
    if (list.number != number) return true;
    ++long_lists_;
    const std::vector<uint32_t> values = std::move(list.values);
    if (!count_values(values.size())) return false;
    auto& placed = open_.back()->get_ref<json::array_t&>();
    placed.reserve(values.size());
    for (const uint32_t value : values) placed.emplace_back(value);
    return true;
  }

  // Puts a value where the parser is; null where that is refused.
  json* put(json&& value) {
    if (!count_values(1)) return nullptr;
    constexpr size_t kStopInterval = 1024;  // values between two looks at the token
    if (values_ % kStopInterval == 0 && stop_.stop_requested()) {
      fail({ErrorCode::cancelled, "the request was abandoned"});
      return nullptr;
    }
    if (open_.empty()) {
      *root_ = std::move(value);
      return &*root_;
    }
    if (open_.back()->is_array()) {
      auto& list = open_.back()->get_ref<json::array_t&>();
      list.push_back(std::move(value));
      return &list.back();
    }
    *member_ = std::move(value);
    return member_;
  }

  bool scalar(json&& value) {
    if (put(std::move(value)) == nullptr) return false;
    if (open_.size() == 1) field_.clear();
    return true;
  }

  bool open(json&& container) {
    if (open_.size() >= size_t(kMaxJsonDepth))
      return fail(
          {ErrorCode::invalid, fmt::format("the body nests deeper than {} levels", kMaxJsonDepth)});
    if (!count_node()) return false;
    json* const placed = put(std::move(container));
    if (placed == nullptr) return false;
    open_.push_back(placed);
    return true;
  }

  bool close() {
    open_.pop_back();
    if (open_.size() == 1) field_.clear();
    return true;
  }

  const std::stop_token& stop_;
  BodyOutline* const outline_;
  size_t lists_ = 0, texts_ = 0;            // so many have come
  size_t long_lists_ = 0, long_texts_ = 0;  // so many of the outline's have been put
  ParsedJson root_;
  // The open containers. A container does not move while one inside it is open.
  std::vector<json*> open_;
  json* member_ = nullptr;  // of the innermost object: where its next value goes
  std::string field_;       // the top-level field whose value is being read
  size_t values_ = 0, nodes_ = 0;
  std::optional<Error> error_;
};

const char* type_name(const json& value) {
  if (value.is_number_integer()) return "integer";
  if (value.is_number_float()) return "number";
  return value.type_name();
}

}  // namespace

Result<ParsedJson> parse_request_json(std::string_view body, const std::stop_token& stop) {
  if (stop.stop_requested()) return Error{ErrorCode::cancelled, "the request was abandoned"};
  if (std::optional<BodyOutline> outline = outline_of(body)) {
    DomBuilder builder(stop, &*outline);
    json::sax_parse(outline->body.begin(), outline->body.end(), &builder);
    Result<ParsedJson> parsed = builder.take();
    if (parsed.ok() && (*parsed)->is_object()) return parsed;
    // What is wrong is said by a reading of the body itself, which knows the place.
  }
  DomBuilder builder(stop);
  json::sax_parse(body.begin(), body.end(), &builder);
  KIVI_ASSIGN_OR_RETURN(ParsedJson parsed, builder.take());
  if (!parsed->is_object())
    return Error{ErrorCode::invalid,
                 fmt::format("the body is of type {}, must be an object", type_name(*parsed))};
  return parsed;
}

std::string describe(const json& value) {
  constexpr size_t kShown = 60;
  if (value.is_array())
    return fmt::format("a list of {} value{}", value.size(), value.size() == 1 ? "" : "s");
  if (value.is_object())
    return fmt::format("an object of {} field{}", value.size(), value.size() == 1 ? "" : "s");
  std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
  if (text.size() > kShown) text = text.substr(0, kShown) + "...";
  return fmt::format("{} ({})", text, type_name(value));
}

std::optional<int64_t> as_integer(const json& value, int64_t lowest, int64_t highest) {
  // 2.0 is an integer too, as JSON Schema says.
  if (value.is_number_float()) {
    const double number = value.get<double>();
    constexpr double kExact = 9007199254740992.0;  // 2^53: beyond, not every integer is a double
    if (!(number >= -kExact && number <= kExact) || number != std::floor(number))
      return std::nullopt;
    const auto whole = int64_t(number);
    return whole < lowest || whole > highest ? std::nullopt : std::optional(whole);
  }
  if (!value.is_number_integer()) return std::nullopt;
  // Above int64 only as unsigned.
  if (value.is_number_unsigned() &&
      value.get<uint64_t>() > uint64_t(std::numeric_limits<int64_t>::max()))
    return std::nullopt;
  const int64_t number = value.get<int64_t>();
  if (number < lowest || number > highest) return std::nullopt;
  return number;
}

JsonFields::JsonFields(const json& object, std::string path, FieldRecorder* recorder)
    : object_(object), path_(std::move(path)), recorder_(recorder) {}

const json* JsonFields::find(const char* name, FieldKind kind, int64_t lowest, int64_t highest) {
  asked_.insert(name);
  if (recorder_ != nullptr) recorder_->note({name, kind, lowest, highest});
  if (!ok()) return nullptr;
  const auto it = object_.find(name);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

const json* JsonFields::raw(const char* name) { return find(name, FieldKind::other); }

void JsonFields::note_refused(const char* name) {
  if (recorder_ != nullptr) recorder_->refuse(name);
}

void JsonFields::fail(Error error) {
  if (!error_) error_ = std::move(error);
}

void JsonFields::fail(const char* name, const std::string& message) {
  fail(Error{ErrorCode::invalid, path_ + name + " " + message, path_ + name});
}

void JsonFields::fail_at(const char* name, size_t index, const std::string& message) {
  fail(Error{ErrorCode::invalid, fmt::format("{}{}[{}] {}", path_, name, index, message),
             path_ + name});
}

Status JsonFields::status() const { return error_ ? Status(*error_) : ok_status(); }

std::vector<std::string> JsonFields::unknown() const {
  std::vector<std::string> names;
  for (const auto& item : object_.items())
    if (!asked_.contains(item.key())) names.push_back(path_ + item.key());
  return names;
}

bool JsonFields::boolean(const char* name, bool otherwise) {
  const json* value = find(name, FieldKind::boolean);
  if (value == nullptr) return otherwise;
  if (!value->is_boolean()) {
    fail(name, fmt::format("is {}, must be true or false", describe(*value)));
    return otherwise;
  }
  return value->get<bool>();
}

int JsonFields::integer(const char* name, int otherwise, int lowest, int highest) {
  const json* value = find(name, FieldKind::integer, lowest, highest);
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
  const json* value = find(name, FieldKind::other);
  if (value == nullptr) return std::nullopt;
  const auto number =
      as_integer(*value, std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max());
  if (!number) fail(name, fmt::format("is {}, must be a 64-bit integer", describe(*value)));
  return number;
}

float JsonFields::number(const char* name, float otherwise) {
  const json* value = find(name, FieldKind::number);
  if (value == nullptr) return otherwise;
  if (!value->is_number() || !std::isfinite(value->get<float>())) {
    fail(name, fmt::format("is {}, must be a finite number", describe(*value)));
    return otherwise;
  }
  return value->get<float>();
}

std::optional<std::string> JsonFields::text(const char* name) {
  const json* value = find(name, FieldKind::text);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) {
    fail(name, fmt::format("is {}, must be a string", describe(*value)));
    return std::nullopt;
  }
  return value->get<std::string>();
}

std::vector<int32_t> JsonFields::integers(const char* name, size_t count_max) {
  const json* value = find(name, FieldKind::integers);
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
      fail_at(name, out.size(), fmt::format("is {}, must be a token id", describe(entry)));
      return {};
    }
    out.push_back(int32_t(*number));
  }
  return out;
}

std::vector<std::string> JsonFields::texts(const char* name, size_t count_max) {
  const json* value = find(name, FieldKind::texts);
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
      fail_at(name, out.size(), fmt::format("is {}, must be a string", describe(entry)));
      return {};
    }
    out.push_back(entry.get<std::string>());
  }
  return out;
}

}  // namespace kivi
