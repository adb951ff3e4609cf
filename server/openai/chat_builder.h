// SPDX-License-Identifier: Apache-2.0
// ChatBuilder makes the JSON of a chat request, into which the other dialects are translated.
// Included by .cpp files of this room alone.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "server/openai/json_reader.h"

namespace kivi {

class ChatBuilder {
 public:
  using Json = nlohmann::ordered_json;

  ChatBuilder() : chat_(Json::object()) { (*chat_)["messages"] = Json::array(); }

  // Text of the system before the first message. Several texts become one message, because many
  // templates take one alone.
  void system(std::string_view text) {
    if (text.empty()) return;
    if (!system_.empty()) system_ += "\n\n";
    system_ += text;
  }
  // Two messages of the user, or two of the assistant, in a row become one: templates want turns.
  void user(std::string text);
  // `calls`: entries of tool_calls. Nothing is added where all three are empty.
  void assistant(std::string text, std::string reasoning, Json calls);
  void tool_result(const std::string& call_id, std::string text);

  Json& operator[](const char* name) { return (*chat_)[name]; }
  bool empty() const { return (*chat_)["messages"].empty(); }
  const Json& last() const { return (*chat_)["messages"].back(); }
  // The JSON of the request. Call it once.
  std::string take();

 private:
  Json& messages() { return (*chat_)["messages"]; }

  OwnedJson<Json> chat_;
  std::string system_;
  // Names of functions, by the id of a call. Of calls with one id the first counts.
  std::unordered_map<std::string, std::string> names_;
};

// Makes the error of a field; `message` names the place in it.
Error wrong(std::string message, std::string field, ErrorCode code = ErrorCode::invalid);

// The same for a value that is not what it must be, or is missing (null): "messages[0] is 1
// (integer), must be an object".
Error misplaced(const std::string& where, const ChatBuilder::Json* value, std::string_view must_be,
                std::string field);
// Returns a member of an object; null if there is none or `object` is none.
const ChatBuilder::Json* member_of(const ChatBuilder::Json& object, const char* name);

// Returns a member that must be a string. `where` is the object's place, for the message.
Result<std::string> text_member(const ChatBuilder::Json& object, const char* name,
                                const std::string& where, const char* field);

// Parameters of this server that every dialect of chats takes under their own names.
inline constexpr const char* kOwnParameters[] = {"seed",
                                                 "top_k",
                                                 "min_p",
                                                 "presence_penalty",
                                                 "frequency_penalty",
                                                 "repetition_penalty",
                                                 "logit_bias",
                                                 "stop_token_ids",
                                                 "min_tokens",
                                                 "ignore_eos",
                                                 "allowed_token_ids",
                                                 "bad_words",
                                                 "structured_outputs",
                                                 "skip_special_tokens",
                                                 "truncate_prompt_tokens",
                                                 "truncation_side",
                                                 "chat_template_kwargs",
                                                 "priority",
                                                 "cache",
                                                 "cache_salt",
                                                 "request_id"};

// Gives an error the names of another dialect: {name in a chat, name there}.
Error renamed(Error error,
              std::initializer_list<std::pair<std::string_view, std::string_view>> names);

}  // namespace kivi
