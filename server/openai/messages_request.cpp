// SPDX-License-Identifier: Apache-2.0
// A request of /v1/messages -> a chat (messages_api.h).
#include <fmt/format.h>

#include <utility>

#include "server/openai/chat_builder.h"
#include "server/openai/messages_api.h"
#include "server/openai/openai_fields.h"

namespace kivi {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

Result<std::string> type_of(const ordered_json& block, const std::string& where,
                            const char* field) {
  if (!block.is_object())
    return wrong(fmt::format("{} is {}, must be an object", where, describe(json(block))), field);
  return text_member(block, "type", where, field);
}

Error unsupported_block(const std::string& type, const std::string& where, const char* field) {
  return wrong(
      fmt::format("{}.type is {}, which this build does not support", where, describe(json(type))),
      field, ErrorCode::unsupported);
}

// A string, or a list of text blocks, which are joined by line breaks.
Result<std::string> text_of(const ordered_json& content, const std::string& where,
                            const char* field) {
  if (content.is_string()) return content.get<std::string>();
  if (!content.is_array())
    return wrong(fmt::format("{} is {}, must be a string or a list of blocks", where,
                             describe(json(content))),
                 field);
  std::string text;
  for (size_t i = 0; i < content.size(); ++i) {
    const std::string block = fmt::format("{}[{}]", where, i);
    KIVI_ASSIGN_OR_RETURN(const std::string type, type_of(content[i], block, field));
    if (type != "text") return unsupported_block(type, block, field);
    KIVI_ASSIGN_OR_RETURN(const std::string part, text_member(content[i], "text", block, field));
    if (i > 0) text += '\n';
    text += part;
  }
  return text;
}

Status read_tool_result(const ordered_json& block, const std::string& where, ChatBuilder& chat) {
  KIVI_ASSIGN_OR_RETURN(const std::string id, text_member(block, "tool_use_id", where, "messages"));
  std::string text;
  if (block.contains("content") && !block["content"].is_null()) {
    KIVI_ASSIGN_OR_RETURN(text, text_of(block["content"], where + ".content", "messages"));
  }
  if (block.value("is_error", ordered_json()) == true) text = "Error: " + text;
  chat.tool_result(id, std::move(text));
  return ok_status();
}

Status read_user(const ordered_json& content, const std::string& where, ChatBuilder& chat) {
  if (content.is_string()) {
    chat.user(content.get<std::string>());
    return ok_status();
  }
  for (size_t i = 0; i < content.size(); ++i) {
    const std::string at = fmt::format("{}[{}]", where, i);
    KIVI_ASSIGN_OR_RETURN(const std::string type, type_of(content[i], at, "messages"));
    if (type == "tool_result") {
      KIVI_RETURN_IF_ERROR(read_tool_result(content[i], at, chat));
    } else if (type == "text") {
      KIVI_ASSIGN_OR_RETURN(std::string text, text_member(content[i], "text", at, "messages"));
      chat.user(std::move(text));
    } else {
      return unsupported_block(type, at, "messages");
    }
  }
  return ok_status();
}

Status read_assistant(const ordered_json& content, const std::string& where, ChatBuilder& chat) {
  if (content.is_string()) {
    chat.assistant(content.get<std::string>(), "", ordered_json::array());
    return ok_status();
  }
  for (size_t i = 0; i < content.size(); ++i) {
    const ordered_json& block = content[i];
    const std::string at = fmt::format("{}[{}]", where, i);
    KIVI_ASSIGN_OR_RETURN(const std::string type, type_of(block, at, "messages"));
    ordered_json calls = ordered_json::array();
    std::string text, reasoning;
    if (type == "text") {
      KIVI_ASSIGN_OR_RETURN(text, text_member(block, "text", at, "messages"));
    } else if (type == "thinking") {
      KIVI_ASSIGN_OR_RETURN(reasoning, text_member(block, "thinking", at, "messages"));
    } else if (type == "tool_use") {
      KIVI_ASSIGN_OR_RETURN(const std::string id, text_member(block, "id", at, "messages"));
      KIVI_ASSIGN_OR_RETURN(const std::string name, text_member(block, "name", at, "messages"));
      if (!block.contains("input") || !block["input"].is_object())
        return misplaced(at + ".input", member_of(block, "input"), "an object", "messages");
      calls.push_back({{"id", id},
                       {"type", "function"},
                       {"function", {{"name", name}, {"arguments", block["input"]}}}});
    } else {
      return unsupported_block(type, at, "messages");
    }
    chat.assistant(std::move(text), std::move(reasoning), std::move(calls));
  }
  return ok_status();
}

Status read_messages(const ordered_json& messages, ChatBuilder& chat) {
  if (!messages.is_array() || messages.empty())
    return misplaced("messages", &messages, "a list of at least one message", "messages");
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string at = fmt::format("messages[{}]", i);
    const ordered_json& message = messages[i];
    if (!message.is_object()) return misplaced(at, &message, "an object", "messages");
    KIVI_ASSIGN_OR_RETURN(const std::string role, text_member(message, "role", at, "messages"));
    const std::string where = at + ".content";
    if (!message.contains("content") ||
        !(message["content"].is_string() || message["content"].is_array()))
      return misplaced(where, member_of(message, "content"), "a string or a list of blocks",
                       "messages");
    const ordered_json& content = message["content"];
    if (role == "user") {
      KIVI_RETURN_IF_ERROR(read_user(content, where, chat));
    } else if (role == "assistant") {
      KIVI_RETURN_IF_ERROR(read_assistant(content, where, chat));
    } else if (role == "system") {
      KIVI_ASSIGN_OR_RETURN(const std::string text, text_of(content, where, "messages"));
      chat.system(text);
    } else {
      return wrong(
          fmt::format("{}.role is {}, must be user, assistant or system", at, describe(json(role))),
          "messages");
    }
  }
  if (chat.empty()) return wrong("messages hold no text", "messages");
  // The answer goes on where a last message of the assistant ends.
  if (chat.last()["role"] == "assistant" && !chat.last().contains("tool_calls")) {
    chat["add_generation_prompt"] = false;
    chat["continue_final_message"] = true;
  }
  return ok_status();
}

Status read_tools(ordered_json& tools, ChatBuilder& chat) {
  if (!tools.is_array()) return misplaced("tools", &tools, "a list of tools", "tools");
  ordered_json functions = ordered_json::array();
  for (size_t i = 0; i < tools.size(); ++i) {
    const std::string at = fmt::format("tools[{}]", i);
    ordered_json& tool = tools[i];
    if (!tool.is_object()) return misplaced(at, &tool, "an object", "tools");
    if (tool.contains("type") && !tool["type"].is_null() && tool["type"] != "custom")
      return wrong(fmt::format("{}.type is {}, which this build does not support: custom tools "
                               "alone",
                               at, describe(json(tool["type"]))),
                   "tools", ErrorCode::unsupported);
    KIVI_ASSIGN_OR_RETURN(const std::string name, text_member(tool, "name", at, "tools"));
    if (!tool.contains("input_schema") || !tool["input_schema"].is_object())
      return misplaced(at + ".input_schema", member_of(tool, "input_schema"), "an object", "tools");
    ordered_json function{{"name", name}};
    if (tool.contains("description") && !tool["description"].is_null())
      function["description"] = std::move(tool["description"]);
    function["parameters"] = std::move(tool["input_schema"]);
    functions.push_back({{"type", "function"}, {"function", std::move(function)}});
  }
  chat["tools"] = std::move(functions);
  return ok_status();
}

Status read_tool_choice(const ordered_json& choice, ChatBuilder& chat) {
  if (!choice.is_object()) return misplaced("tool_choice", &choice, "an object", "tool_choice");
  KIVI_ASSIGN_OR_RETURN(const std::string type,
                        text_member(choice, "type", "tool_choice", "tool_choice"));
  if (type == "any") {
    chat["tool_choice"] = "required";
  } else if (type == "tool") {
    KIVI_ASSIGN_OR_RETURN(const std::string name,
                          text_member(choice, "name", "tool_choice", "tool_choice"));
    chat["tool_choice"] = {{"type", "function"}, {"function", {{"name", name}}}};
  } else if (type == "auto" || type == "none") {
    chat["tool_choice"] = type;
  } else {
    return wrong(fmt::format("tool_choice.type is {}, must be auto, any, none or tool",
                             describe(json(type))),
                 "tool_choice");
  }
  const ordered_json alone = choice.value("disable_parallel_tool_use", ordered_json());
  if (!alone.is_null() && !alone.is_boolean())
    return misplaced("tool_choice.disable_parallel_tool_use", &alone, "true or false",
                     "tool_choice");
  if (alone == true) chat["parallel_tool_calls"] = false;
  return ok_status();
}

// `thinking` switches the reasoning of templates that know a switch.
Status read_thinking(const json& thinking, const ApiRules& rules, ChatBuilder& chat) {
  const json type = thinking.is_object() ? thinking.value("type", json()) : json();
  if (type != "enabled" && type != "disabled" && type != "adaptive")
    return wrong(fmt::format("thinking.type is {}, must be enabled, adaptive or disabled",
                             type.is_null() ? "missing" : describe(type)),
                 "thinking");
  const bool switched = rules.chat_template.find("enable_thinking") != std::string_view::npos;
  if (switched && type != "adaptive") {
    ordered_json& variables = chat["chat_template_kwargs"];
    if (variables.is_null()) variables = ordered_json::object();
    if (variables.is_object() && !variables.contains("enable_thinking"))
      variables["enable_thinking"] = type == "enabled";
  }
  if (!switched && type == "enabled" && !rules.reasoning)
    return wrong("thinking.type is enabled, but the model's chat template knows no reasoning",
                 "thinking", ErrorCode::unsupported);
  return ok_status();
}

// output_config and its older part output_format: the format of the text.
Status read_format(const ordered_json& format, const std::string& where, ChatBuilder& chat) {
  if (!format.is_object() || format.value("type", ordered_json()) != "json_schema" ||
      !format.contains("schema"))
    return misplaced(where, &format, "an object of type json_schema with a schema",
                     "output_config.format");
  chat["response_format"] = {{"type", "json_schema"},
                             {"json_schema", {{"name", "output"}, {"schema", format["schema"]}}}};
  return ok_status();
}

Status read_output_config(const ordered_json& config, ChatBuilder& chat) {
  if (!config.is_object()) return misplaced("output_config", &config, "an object", "output_config");
  for (const auto& [name, value] : config.items()) {
    if (value.is_null()) continue;
    if (name == "format") {
      KIVI_RETURN_IF_ERROR(read_format(value, "output_config.format", chat));
    } else if (name == "effort") {
      chat["reasoning_effort"] = value;
    } else {
      return wrong(fmt::format("output_config.{} is not supported by this build", name),
                   "output_config." + name, ErrorCode::unsupported);
    }
  }
  return ok_status();
}

// Everything but messages, which come first in errors.
Status read_settings(JsonFields& fields, ordered_json& source, const ApiRules& rules,
                     ChatBuilder& chat) {
  const auto copy = [&](const char* name, const char* as) {
    if (fields.raw(name) != nullptr) chat[as] = std::move(source[name]);
  };
  for (const char* name : kOwnParameters) copy(name, name);
  for (const char* name : {"temperature", "top_p", "stream"}) copy(name, name);
  copy("stop_sequences", "stop");
  if (fields.raw("tools") != nullptr) KIVI_RETURN_IF_ERROR(read_tools(source["tools"], chat));
  if (fields.raw("tool_choice") != nullptr)
    KIVI_RETURN_IF_ERROR(read_tool_choice(source["tool_choice"], chat));
  if (const json* thinking = fields.raw("thinking"))
    KIVI_RETURN_IF_ERROR(read_thinking(*thinking, rules, chat));
  if (fields.raw("output_format") != nullptr)
    KIVI_RETURN_IF_ERROR(read_format(source["output_format"], "output_format", chat));
  if (fields.raw("output_config") != nullptr)
    KIVI_RETURN_IF_ERROR(read_output_config(source["output_config"], chat));
  const json* metadata = fields.raw("metadata");
  if (metadata != nullptr && !metadata->is_object())
    return wrong(fmt::format("metadata is {}, must be an object", describe(*metadata)), "metadata");
  refuse_unless(fields, "service_tier", {"auto", "standard_only"});
  refuse_fields(fields, {"container", "mcp_servers", "context_management"});
  refuse_unbuilt(fields);
  return fields.status();
}

Result<ChatCall> parse(std::string_view body, const ApiRules& rules, bool counting) {
  std::vector<std::string> unknown;
  std::string chat_body;
  {  // frees the JSON of the dialect before that of the chat is made
    KIVI_ASSIGN_OR_RETURN(const ParsedJson parsed, parse_request_json(body, rules.stop));
    JsonFields fields(*parsed, "", rules.recorder);
    KIVI_RETURN_IF_ERROR(check_model(fields, rules));
    KIVI_RETURN_IF_ERROR(fields.status());
    KIVI_RETURN_IF_ERROR(check_object_sizes(*parsed));
    OwnedJson<ordered_json> source(ordered_json::parse(body));
    ChatBuilder chat;
    if (fields.raw("system") != nullptr) {
      KIVI_ASSIGN_OR_RETURN(const std::string text,
                            text_of((*source)["system"], "system", "system"));
      chat.system(text);
    }
    if (fields.raw("messages") == nullptr)
      return wrong("messages is missing, must be a list of messages", "messages");
    KIVI_RETURN_IF_ERROR(read_messages((*source)["messages"], chat));
    const int max_tokens = fields.integer("max_tokens", 0, 1);
    KIVI_RETURN_IF_ERROR(fields.status());
    if (max_tokens > 0)
      chat["max_tokens"] = max_tokens;
    else if (!counting)
      return wrong("max_tokens is missing, must be an integer of at least 1", "max_tokens");
    KIVI_RETURN_IF_ERROR(read_settings(fields, *source, rules, chat));
    KIVI_RETURN_IF_ERROR(take_unknown(fields, rules, unknown));
    chat_body = chat.take();
  }
  ApiRules chat_rules = rules;
  chat_rules.recorder = nullptr;  // the fields of a chat are not those of the request
  Result<ChatCall> call = parse_chat(chat_body, chat_rules);
  if (!call.ok()) return messages_error(call.error());
  for (std::string& name : unknown) call->completion.unknown_fields.push_back(std::move(name));
  return call;
}

}  // namespace

Error messages_error(Error error) {
  if (error.field == "prompt") error.field = "messages";
  return renamed(std::move(error), {{"stop", "stop_sequences"},
                                    {"response_format", "output_config.format"},
                                    {"reasoning_effort", "output_config.effort"}});
}

Result<ChatCall> parse_messages(std::string_view body, const ApiRules& rules) {
  return parse(body, rules, /*counting=*/false);
}

Result<ChatCall> parse_count_tokens(std::string_view body, const ApiRules& rules) {
  return parse(body, rules, /*counting=*/true);
}

}  // namespace kivi
