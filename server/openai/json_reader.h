// SPDX-License-Identifier: Apache-2.0
// Reads a request's JSON strictly: syntax with limits first, then field by field with types and
// ranges. Every error names the field at fault. Included by .cpp files only (nlohmann/json is slow
// to compile).
#pragma once

#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <stop_token>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"
#include "server/openai/field_recorder.h"

namespace kivi {

// Empties a DOM from the leaves upward. The destructor of the library allocates memory for all
// children of a container, and an exception in a destructor ends the process. Recurses as deep as
// `value` nests.
template <class Json>
void dismantle(Json& value) noexcept {
  if (value.is_array()) {
    auto& list = value.template get_ref<typename Json::array_t&>();
    for (Json& item : list) dismantle(item);
    list.clear();
  } else if (value.is_object()) {
    auto& object = value.template get_ref<typename Json::object_t&>();
    for (auto& member : object) dismantle(member.second);
    object.clear();
  }
}

// A DOM that needs no memory to be destroyed.
template <class Json>
class OwnedJson {
 public:
  OwnedJson() = default;
  explicit OwnedJson(Json&& json) : json_(std::move(json)) {}
  OwnedJson(OwnedJson&& other) noexcept : json_(std::move(other.json_)) {}
  OwnedJson& operator=(OwnedJson&& other) noexcept {
    json_.swap(other.json_);
    return *this;
  }
  ~OwnedJson() { dismantle(json_); }

  Json& operator*() { return json_; }
  const Json& operator*() const { return json_; }
  Json* operator->() { return &json_; }
  const Json* operator->() const { return &json_; }

 private:
  Json json_;
};
using ParsedJson = OwnedJson<nlohmann::json>;

// A request's body: an object, nested at most kMaxJsonDepth deep, without duplicate keys (which
// readers resolve differently), of at most kMaxJsonValues values and kMaxJsonNodes allocations.
// Takes time linear in the body's length, whatever its shape. An error's field is the top-level
// field whose value is at fault, where one is ("temperature" for {"temperature": NaN}). Error
// cancelled soon after `stop` was requested.
Result<ParsedJson> parse_request_json(std::string_view body, const std::stop_token& stop = {});

// Reads the fields of one object. After the first error, which is kept, all readers return their
// default. An absent field and null are the same.
class JsonFields {
 public:
  // `path` is put before field names in errors ("stream_options."). `object` must outlive this.
  // `recorder`: notes what is asked for; null = nobody does.
  explicit JsonFields(const nlohmann::json& object, std::string path = "",
                      FieldRecorder* recorder = nullptr);

  bool boolean(const char* name, bool otherwise);
  int integer(const char* name, int otherwise, int lowest = std::numeric_limits<int>::min(),
              int highest = std::numeric_limits<int>::max());
  std::optional<int64_t> int64(const char* name);
  float number(const char* name, float otherwise);
  std::optional<std::string> text(const char* name);
  std::vector<int32_t> integers(const char* name, size_t count_max);
  // A string, or a list of strings.
  std::vector<std::string> texts(const char* name, size_t count_max);
  // The object itself.
  const nlohmann::json& object() const { return object_; }
  // The value itself, or null if it is absent. The caller judges its type.
  const nlohmann::json* raw(const char* name);
  // Tells the recorder that the field is refused.
  void note_refused(const char* name);

  // Notes an error, unless there is one already.
  void fail(Error error);
  void fail(const char* name, const std::string& message);
  // The same for an entry of a list.
  void fail_at(const char* name, size_t index, const std::string& message);
  bool ok() const { return !error_.has_value(); }
  Status status() const;

  // Fields of the object that nobody asked for.
  std::vector<std::string> unknown() const;

 private:
  const nlohmann::json* find(const char* name, FieldKind kind, int64_t lowest = 0,
                             int64_t highest = 0);

  const nlohmann::json& object_;
  std::string path_;
  std::set<std::string, std::less<>> asked_;
  FieldRecorder* recorder_;
  std::optional<Error> error_;
};

// Returns a value as error messages show it, cut to a few characters: "3.5 (number)", "\"abc\"
// (string)", "a list of 3 values".
std::string describe(const nlohmann::json& value);

// Returns a JSON number within [lowest, highest] that is an integer (3 or 3.0), and nothing for all
// else (true too).
std::optional<int64_t> as_integer(const nlohmann::json& value, int64_t lowest, int64_t highest);

}  // namespace kivi
