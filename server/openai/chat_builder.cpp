// SPDX-License-Identifier: Apache-2.0
#include "server/openai/chat_builder.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace kivi {

void ChatBuilder::user(std::string text) {
  if (!empty() && last()["role"] == "user") {
    Json& content = messages().back()["content"];
    content = content.get_ref<const std::string&>() + '\n' + text;
    return;
  }
  messages().push_back({{"role", "user"}, {"content", std::move(text)}});
}

void ChatBuilder::assistant(std::string text, std::string reasoning, Json calls) {
  if (text.empty() && reasoning.empty() && calls.empty()) return;
  for (const Json& call : calls)
    names_.emplace_back(call["id"].get<std::string>(), call["function"]["name"].get<std::string>());
  if (empty() || last()["role"] != "assistant")
    messages().push_back({{"role", "assistant"}, {"content", ""}});
  Json& message = messages().back();
  const auto append = [&](const char* name, std::string& more) {
    if (more.empty()) return;
    const std::string before = message.contains(name) && message[name].is_string()
                                   ? message[name].get<std::string>()
                                   : std::string();
    message[name] = before.empty() ? std::move(more) : before + '\n' + more;
  };
  append("content", text);
  append("reasoning_content", reasoning);
  if (calls.empty()) return;
  if (!message.contains("tool_calls")) message["tool_calls"] = Json::array();
  for (Json& call : calls) message["tool_calls"].push_back(std::move(call));
}

void ChatBuilder::tool_result(const std::string& call_id, std::string text) {
  Json message{{"role", "tool"}, {"tool_call_id", call_id}, {"content", std::move(text)}};
  const auto named =
      std::ranges::find(names_, call_id, &std::pair<std::string, std::string>::first);
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

Result<std::string> text_member(const ChatBuilder::Json& object, const char* name,
                                const std::string& where, const char* field) {
  if (!object.contains(name) || !object[name].is_string())
    return wrong(
        fmt::format("{}.{} is {}, must be a string", where, name,
                    object.contains(name) ? describe(nlohmann::json(object[name])) : "missing"),
        field);
  return object[name].get<std::string>();
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
