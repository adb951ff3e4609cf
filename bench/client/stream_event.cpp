// SPDX-License-Identifier: Apache-2.0
#include "bench/client/stream_event.h"

#include <nlohmann/json.hpp>

namespace kivi::load {
namespace {

constexpr size_t kMessageBytesMax = 200;

// What follows `"key":` in `json`, blanks left out; "" where there is no such key. A quoted key in
// a text does not match: its quotes are escaped there.
std::string_view value_after(std::string_view json, std::string_view quoted_key) {
  for (size_t at = 0; (at = json.find(quoted_key, at)) != std::string_view::npos;) {
    at += quoted_key.size();
    std::string_view rest = json.substr(at);
    const auto skip_blanks = [&rest] {
      while (!rest.empty() && (rest.front() == ' ' || rest.front() == '\t')) rest.remove_prefix(1);
    };
    skip_blanks();
    if (!rest.starts_with(':')) continue;  // a text that is the key's word
    rest.remove_prefix(1);
    skip_blanks();
    return rest;
  }
  return {};
}

bool is_text(std::string_view value) {
  return value.starts_with('"') && !value.starts_with("\"\"");
}

int count_of(const nlohmann::json& usage, const char* key) {
  const auto value = usage.find(key);
  return value != usage.end() && value->is_number_integer() ? value->get<int>() : 0;
}

void read_rare(std::string_view data, StreamEvent& event) {
  const auto json = nlohmann::json::parse(data, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) {
    event.bad = true;
    return;
  }
  if (const auto usage = json.find("usage"); usage != json.end() && usage->is_object()) {
    event.has_usage = true;
    event.prompt_tokens = count_of(*usage, "prompt_tokens");
    event.completion_tokens = count_of(*usage, "completion_tokens");
  }
  if (const auto error = json.find("error"); error != json.end() && !error->is_null())
    event.error = error_message(data);
}

}  // namespace

StreamEvent read_event(std::string_view data) {
  StreamEvent event;
  if (data == "[DONE]") {
    event.done = true;
    return event;
  }
  if (!data.starts_with('{')) {
    event.bad = true;
    return event;
  }
  event.finished = value_after(data, "\"finish_reason\"").starts_with('"');
  if (value_after(data, "\"delta\"").starts_with('{')) {
    // A role alone, or empty content beside it, is the chat's opening and no token.
    event.token = is_text(value_after(data, "\"content\"")) ||
                  is_text(value_after(data, "\"reasoning_content\""));
  } else {
    const std::string_view text = value_after(data, "\"text\"");
    event.token = is_text(text) || (text.starts_with('"') && !event.finished);
  }
  if (value_after(data, "\"usage\"").starts_with('{') || !value_after(data, "\"error\"").empty())
    read_rare(data, event);
  return event;
}

std::string error_message(std::string_view body) {
  const auto json = nlohmann::json::parse(body, nullptr, /*allow_exceptions=*/false);
  std::string message(body.substr(0, kMessageBytesMax));
  const auto take = [&message](const nlohmann::json& object, const char* key) {
    const auto value = object.find(key);
    if (value == object.end() || !value->is_string()) return false;
    message = value->get<std::string>().substr(0, kMessageBytesMax);
    return true;
  };
  if (!json.is_object()) return message;
  const auto error = json.find("error");
  if (error != json.end() && error->is_object() && take(*error, "message")) return message;
  if (!take(json, "error") && !take(json, "message")) take(json, "detail");
  return message;
}

}  // namespace kivi::load
