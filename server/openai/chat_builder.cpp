// SPDX-License-Identifier: Apache-2.0
#include "server/openai/chat_builder.h"

#include <fmt/format.h>

#include <utility>

namespace kivi {

namespace {

// Appends a line to a text in place: a body may hold many thousand messages of one role in a row.
void append_line(std::string& text, std::string_view line) {
  if (!text.empty()) text += '\n';
  text += line;
}

}  // namespace

void ChatBuilder::user(std::string text) {
  if (!empty() && last()["role"] == "user") {
    auto& content = messages().back()["content"].get_ref<std::string&>();
    content += '\n';
    content += text;
    return;
  }
  messages().push_back({{"role", "user"}, {"content", std::move(text)}});
}

void ChatBuilder::assistant(std::string text, std::string reasoning, Json calls) {
  if (text.empty() && reasoning.empty() && calls.empty()) return;
  for (const Json& call : calls)
    names_.emplace(call["id"].get<std::string>(), call["function"]["name"].get<std::string>());
  if (empty() || last()["role"] != "assistant")
    messages().push_back({{"role", "assistant"}, {"content", ""}});
  Json& message = messages().back();
  const auto append = [&](const char* name, const std::string& more) {
    if (more.empty()) return;
    if (!message.contains(name)) message[name] = "";
    append_line(message[name].get_ref<std::string&>(), more);
  };
  append("content", text);
  append("reasoning_content", reasoning);
  if (calls.empty()) return;
  if (!message.contains("tool_calls")) message["tool_calls"] = Json::array();
  for (Json& call : calls) message["tool_calls"].push_back(std::move(call));
}

void ChatBuilder::tool_result(const std::string& call_id, std::string text) {
  Json message{{"role", "tool"}, {"tool_call_id", call_id}, {"content", std::move(text)}};
  const auto named = names_.find(call_id);
  if (named != names_.end()) message["name"] = named->second;
  messages().push_back(std::move(message));
}

std::string ChatBuilder::take() {
  if (!system_.empty())
    messages().insert(messages().begin(), Json{{"role", "system"}, {"content", system_}});
  return chat_->dump();
}

Error wrong(std::string message, std::string field, ErrorCode code) {
  return Error{code, std::move(message), std::move(field)};
}

Error misplaced(const std::string& where, const ChatBuilder::Json* value, std::string_view must_be,
                std::string field) {
  return wrong(
      fmt::format("{} is {}, must be {}", where,
                  value == nullptr ? "missing" : describe(nlohmann::json(*value)), must_be),
      std::move(field));
}

const ChatBuilder::Json* member_of(const ChatBuilder::Json& object, const char* name) {
  if (!object.is_object()) return nullptr;
  const auto found = object.find(name);
  return found == object.end() ? nullptr : &*found;
}

Result<std::string> text_member(const ChatBuilder::Json& object, const char* name,
                                const std::string& where, const char* field) {
  const ChatBuilder::Json* const member = member_of(object, name);
  if (member == nullptr || !member->is_string())
    return misplaced(fmt::format("{}.{}", where, name), member, "a string", field);
  return member->get<std::string>();
}

Error renamed(Error error,
              std::initializer_list<std::pair<std::string_view, std::string_view>> names) {
  for (const auto& [chat, here] : names) {
    if (error.field != chat) continue;
    if (error.message.starts_with(chat))
      error.message = std::string(here) + error.message.substr(chat.size());
    error.field = here;
    break;
  }
  return error;
}

}  // namespace kivi
