// SPDX-License-Identifier: Apache-2.0
// A request of /v1/responses -> a chat (responses_api.h).
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "server/openai/chat_builder.h"
#include "server/openai/openai_fields.h"
#include "server/openai/responses_api.h"

namespace kivi {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

// A string, or a list of parts of text, which are joined by line breaks.
Result<std::string> text_of_parts(const ordered_json& content, const std::string& where) {
  if (content.is_string()) return content.get<std::string>();
  if (!content.is_array())
    return wrong(fmt::format("{} is {}, must be a string or a list of parts", where,
                             describe(json(content))),
                 "input");
  std::string text;
  for (size_t i = 0; i < content.size(); ++i) {
    const std::string part = fmt::format("{}[{}]", where, i);
    if (!content[i].is_object()) return misplaced(part, &content[i], "an object", "input");
    KIVI_ASSIGN_OR_RETURN(const std::string type, text_member(content[i], "type", part, "input"));
    const bool refusal = type == "refusal";
    if (!refusal && type != "input_text" && type != "output_text" && type != "text" &&
        type != "reasoning_text" && type != "summary_text")
      return wrong(
          fmt::format("{}.type is {}, this build has text only", part, describe(json(type))),
          "input", ErrorCode::unsupported);
    KIVI_ASSIGN_OR_RETURN(const std::string piece,
                          text_member(content[i], refusal ? "refusal" : "text", part, "input"));
    if (i > 0) text += '\n';
    text += piece;
  }
  return text;
}

Status read_message(const ordered_json& item, const std::string& where, ChatBuilder& chat) {
  KIVI_ASSIGN_OR_RETURN(const std::string role, text_member(item, "role", where, "input"));
  if (!item.contains("content")) return wrong(where + ".content is missing", "input");
  KIVI_ASSIGN_OR_RETURN(std::string text, text_of_parts(item["content"], where + ".content"));
  if (role == "user")
    chat.user(std::move(text));
  else if (role == "assistant")
    chat.assistant(std::move(text), "", ordered_json::array());
  else if (role == "system" || role == "developer")
    chat.system(text);
  else
    return wrong(fmt::format("{}.role is {}, must be user, assistant, system or developer", where,
                             describe(json(role))),
                 "input");
  return ok_status();
}

Status read_call(const ordered_json& item, const std::string& where, ChatBuilder& chat) {
  KIVI_ASSIGN_OR_RETURN(const std::string id, text_member(item, "call_id", where, "input"));
  KIVI_ASSIGN_OR_RETURN(const std::string name, text_member(item, "name", where, "input"));
  KIVI_ASSIGN_OR_RETURN(const std::string arguments,
                        text_member(item, "arguments", where, "input"));
  ordered_json calls = ordered_json::array();
  calls.push_back(
      {{"id", id}, {"type", "function"}, {"function", {{"name", name}, {"arguments", arguments}}}});
  chat.assistant("", "", std::move(calls));
  return ok_status();
}

Status read_item(const ordered_json& item, const std::string& where, ChatBuilder& chat) {
  if (!item.is_object()) return misplaced(where, &item, "an object", "input");
  const ordered_json type = item.value("type", ordered_json("message"));
  if (type == "message") return read_message(item, where, chat);
  if (type == "function_call") return read_call(item, where, chat);
  if (type == "function_call_output") {
    KIVI_ASSIGN_OR_RETURN(const std::string id, text_member(item, "call_id", where, "input"));
    if (!item.contains("output")) return wrong(where + ".output is missing", "input");
    KIVI_ASSIGN_OR_RETURN(std::string text, text_of_parts(item["output"], where + ".output"));
    chat.tool_result(id, std::move(text));
    return ok_status();
  }
  if (type == "reasoning") {
    if (!item.contains("content") || item["content"].is_null()) return ok_status();
    KIVI_ASSIGN_OR_RETURN(std::string text, text_of_parts(item["content"], where + ".content"));
    chat.assistant("", std::move(text), ordered_json::array());
    return ok_status();
  }
  return wrong(
      fmt::format("{}.type is {}, which this build does not support", where, describe(json(type))),
      "input", ErrorCode::unsupported);
}

Status read_input(const ordered_json& input, ChatBuilder& chat) {
  if (input.is_string()) {
    chat.user(input.get<std::string>());
    return ok_status();
  }
  if (!input.is_array() || input.empty())
    return misplaced("input", &input, "a string or a list of at least one item", "input");
  int i = 0;
  for (const ordered_json& item : input)
    KIVI_RETURN_IF_ERROR(read_item(item, fmt::format("input[{}]", i++), chat));
  return chat.empty() ? Status(wrong("input holds no message", "input")) : ok_status();
}

// A function stands in the tool itself here, and in a member of it in chats.
Status read_response_tools(const ordered_json& tools, ChatBuilder& chat) {
  if (!tools.is_array()) return misplaced("tools", &tools, "a list of tools", "tools");
  ordered_json functions = ordered_json::array();
  for (size_t i = 0; i < tools.size(); ++i) {
    const std::string at = fmt::format("tools[{}]", i);
    const ordered_json& tool = tools[i];
    if (!tool.is_object()) return misplaced(at, &tool, "an object", "tools");
    if (tool.value("type", ordered_json()) != "function")
      return wrong(fmt::format("{}.type is {}, this build has functions only", at,
                               describe(json(tool.value("type", ordered_json())))),
                   "tools", ErrorCode::unsupported);
    KIVI_ASSIGN_OR_RETURN(const std::string name, text_member(tool, "name", at, "tools"));
    ordered_json function{{"name", name}};
    for (const char* member : {"description", "parameters"})
      if (tool.contains(member) && !tool[member].is_null()) function[member] = tool[member];
    functions.push_back({{"type", "function"}, {"function", std::move(function)}});
  }
  if (!functions.empty()) chat["tools"] = std::move(functions);
  return ok_status();
}

Status read_response_tool_choice(const ordered_json& choice, ChatBuilder& chat) {
  if (!choice.is_object()) {
    chat["tool_choice"] = choice;  // auto, none or required
    return ok_status();
  }
  if (choice.value("type", ordered_json()) != "function")
    return wrong(fmt::format("tool_choice.type is {}, this build has function only",
                             describe(json(choice.value("type", ordered_json())))),
                 "tool_choice", ErrorCode::unsupported);
  KIVI_ASSIGN_OR_RETURN(const std::string name,
                        text_member(choice, "name", "tool_choice", "tool_choice"));
  chat["tool_choice"] = {{"type", "function"}, {"function", {{"name", name}}}};
  return ok_status();
}

// text: {"format": {...}}.
Status read_text(const ordered_json& text, ChatBuilder& chat) {
  if (!text.is_object()) return misplaced("text", &text, "an object", "text");
  for (const auto& [name, value] : text.items()) {
    if (value.is_null() || (name == "verbosity" && value == "medium")) continue;
    if (name != "format")
      return wrong(fmt::format("text.{} is not supported by this build", name), "text." + name,
                   ErrorCode::unsupported);
    const ordered_json type = value.is_object() ? value.value("type", ordered_json()) : value;
    if (type == "json_schema") {
      if (!value.contains("schema"))
        return wrong("text.format of type json_schema must have a schema", "text.format");
      ordered_json schema{{"name", "output"}, {"schema", value["schema"]}};
      if (value.contains("strict")) schema["strict"] = value["strict"];
      chat["response_format"] = {{"type", "json_schema"}, {"json_schema", std::move(schema)}};
    } else if (type == "json_object" || type == "text") {
      chat["response_format"] = {{"type", type}};
    } else {
      return wrong(fmt::format("text.format has the type {}, must be text, json_object or "
                               "json_schema",
                               describe(json(type))),
                   "text.format");
    }
  }
  return ok_status();
}

Status read_reasoning(const ordered_json& reasoning, ChatBuilder& chat) {
  if (!reasoning.is_object()) return misplaced("reasoning", &reasoning, "an object", "reasoning");
  for (const auto& [name, value] : reasoning.items()) {
    if (value.is_null()) continue;
    if (name != "effort")
      return wrong(fmt::format("reasoning.{} is not supported by this build", name),
                   "reasoning." + name, ErrorCode::unsupported);
    chat["reasoning_effort"] = value;
  }
  return ok_status();
}

// Responses are not kept, so nothing that needs a store can be had.
void refuse_unbuilt_responses(JsonFields& fields) {
  if (fields.raw("store") != nullptr && *fields.raw("store") == true)
    fields.fail({ErrorCode::unsupported,
                 "store is true, but this server keeps no responses: leave it out or give false",
                 "store"});
  if (fields.raw("previous_response_id") != nullptr)
    fields.fail({ErrorCode::unsupported,
                 "previous_response_id is not supported, because this server keeps no responses: "
                 "send the earlier items in input",
                 "previous_response_id"});
  fields.note_refused("store");
  fields.note_refused("previous_response_id");
  refuse_fields(fields, {"conversation", "prompt", "max_tool_calls", "moderation"});
  refuse_unless(fields, "background", {false});
  refuse_unless(fields, "truncation", {"disabled"});
  refuse_unless(fields, "include", {json::array()});
  refuse_unless(fields, "top_logprobs", {0});
  refuse_unless(fields, "service_tier", {"auto", "default"});
}

// The members of a response that say what was asked for, in the request's own words.
std::string echo_of(const ordered_json& source, const json& parsed) {
  const auto given = [&](const char* name) {
    return parsed.contains(name) && !parsed[name].is_null();
  };
  std::string echo;
  const auto add = [&](const char* name, const char* otherwise) {
    echo += fmt::format(",\"{}\":{}", name, given(name) ? source[name].dump() : otherwise);
  };
  for (const char* name : {"instructions", "max_output_tokens", "temperature", "top_p", "user"})
    add(name, "null");
  add("metadata", "{}");
  add("tools", "[]");
  add("tool_choice", "\"auto\"");
  add("parallel_tool_calls", "true");
  add("text", R"({"format":{"type":"text"}})");
  add("reasoning", R"({"effort":null,"summary":null})");
  echo +=
      R"(,"previous_response_id":null,"store":false,"background":false,"truncation":"disabled",)"
      R"("service_tier":"default")";
  return echo;
}

Status read_settings(JsonFields& fields, ordered_json& source, ChatBuilder& chat) {
  const auto copy = [&](const char* name, const char* as) {
    if (fields.raw(name) != nullptr) chat[as] = source[name];
  };
  for (const char* name : kOwnParameters) copy(name, name);
  for (const char* name : {"temperature", "top_p", "stream", "parallel_tool_calls", "user", "stop"})
    copy(name, name);
  copy("max_output_tokens", "max_tokens");
  if (fields.raw("tools") != nullptr)
    KIVI_RETURN_IF_ERROR(read_response_tools(source["tools"], chat));
  if (fields.raw("tool_choice") != nullptr)
    KIVI_RETURN_IF_ERROR(read_response_tool_choice(source["tool_choice"], chat));
  if (fields.raw("text") != nullptr) KIVI_RETURN_IF_ERROR(read_text(source["text"], chat));
  if (fields.raw("reasoning") != nullptr)
    KIVI_RETURN_IF_ERROR(read_reasoning(source["reasoning"], chat));
  for (const char* name : {"metadata", "stream_options"})
    if (const json* value = fields.raw(name); value != nullptr && !value->is_object())
      fields.fail(name, fmt::format("is {}, must be an object", describe(*value)));
  // Hints to OpenAI's own service, which has no counterpart here.
  for (const char* name : {"safety_identifier", "prompt_cache_key"}) fields.text(name);
  refuse_unbuilt_responses(fields);
  refuse_unbuilt(fields);
  return fields.status();
}

}  // namespace

Error responses_error(Error error) {
  if (error.field == "prompt") error.field = "messages";
  return renamed(std::move(error), {{"messages", "input"},
                                    {"max_tokens", "max_output_tokens"},
                                    {"response_format", "text.format"},
                                    {"reasoning_effort", "reasoning.effort"}});
}

Result<ResponsesCall> parse_responses(std::string_view body, const ApiRules& rules) {
  std::vector<std::string> unknown;
  std::string chat_body, echo;
  {  // frees the JSON of the dialect before that of the chat is made
    KIVI_ASSIGN_OR_RETURN(const ParsedJson parsed, parse_request_json(body, rules.stop));
    JsonFields fields(*parsed, "", rules.recorder);
    KIVI_RETURN_IF_ERROR(check_model(fields, rules));
    const auto instructions = fields.text("instructions");
    KIVI_RETURN_IF_ERROR(fields.status());
    KIVI_RETURN_IF_ERROR(check_object_sizes(*parsed));
    OwnedJson<ordered_json> source(ordered_json::parse(body));
    ChatBuilder chat;
    chat.system(instructions.value_or(""));
    if (fields.raw("input") == nullptr)
      return wrong("input is missing, must be a string or a list of items", "input");
    KIVI_RETURN_IF_ERROR(read_input((*source)["input"], chat));
    KIVI_RETURN_IF_ERROR(read_settings(fields, *source, chat));
    KIVI_RETURN_IF_ERROR(take_unknown(fields, rules, unknown));
    echo = echo_of(*source, *parsed);
    chat_body = chat.take();
  }
  ApiRules chat_rules = rules;
  chat_rules.recorder = nullptr;  // the fields of a chat are not those of the request
  Result<ChatCall> chat = parse_chat(chat_body, chat_rules);
  if (!chat.ok()) return responses_error(chat.error());
  for (std::string& name : unknown) chat->completion.unknown_fields.push_back(std::move(name));
  return ResponsesCall{std::move(*chat), std::move(echo)};
}

}  // namespace kivi
