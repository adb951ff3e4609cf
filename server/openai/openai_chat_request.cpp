// SPDX-License-Identifier: Apache-2.0
// The JSON of chats -> the engine's types (openai_api.h).
#include <fmt/format.h>

#include <algorithm>

#include "server/openai/chat_builder.h"
#include "server/openai/openai_fields.h"

namespace kivi {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

// A list of parts becomes their text, a line each; other parts are not built.
Status flatten_content(ordered_json& content, const std::string& name) {
  std::string text;
  for (size_t i = 0; i < content.size(); ++i) {
    const ordered_json& part = content[i];
    const std::string where = fmt::format("{}[{}]", name, i);
    if (!part.is_object() || !part.contains("type") || !part["type"].is_string())
      return misplaced(where, &part, "an object with a type", "messages");
    const auto type = part["type"].get<std::string>();
    if (type != "text")
      return wrong(
          fmt::format("{}.type is {}, this build has text only", where, describe(json(type))),
          "messages", ErrorCode::unsupported);
    if (!part.contains("text") || !part["text"].is_string())
      return misplaced(where + ".text", member_of(part, "text"), "a string", "messages");
    if (i > 0) text += '\n';
    text += part["text"].get<std::string>();
  }
  content = text;
  return ok_status();
}

// Templates see arguments as what they are; OpenAI's clients send them as JSON in a string.
Status read_tool_calls(ordered_json& calls, const std::string& name) {
  if (!calls.is_array()) return misplaced(name, &calls, "a list", "messages");
  for (size_t i = 0; i < calls.size(); ++i) {
    const std::string where = fmt::format("{}[{}].function", name, i);
    if (!calls[i].is_object() || !calls[i].contains("function") ||
        !calls[i]["function"].is_object())
      return misplaced(where, member_of(calls[i], "function"), "an object", "messages");
    ordered_json& function = calls[i]["function"];
    if (!function.contains("name") || !function["name"].is_string())
      return misplaced(where + ".name", member_of(function, "name"), "a string", "messages");
    if (!function.contains("arguments") || !function["arguments"].is_string()) continue;
    const auto text = function["arguments"].get<std::string>();
    const auto parsed = parse_request_json(text);
    if (!parsed.ok())
      return wrong(fmt::format("{}.arguments is a string, must hold a JSON object: {}", where,
                               parsed.error().message),
                   "messages");
    KIVI_RETURN_IF_ERROR(check_object_sizes(**parsed));
    function["arguments"] = ordered_json::parse(text);
  }
  return ok_status();
}

// Clients send a message of an earlier answer back as they have it, with "tool_calls": null and the
// like. Templates ask whether such a member is there.
void drop_nulls(ordered_json& message) {
  for (auto member = message.begin(); member != message.end();) {
    const bool none =
        member.value().is_null() ||
        (member.key() == "tool_calls" && member.value().is_array() && member.value().empty());
    member = none && member.key() != "content" ? message.erase(member) : std::next(member);
  }
}

// OpenAI's roles, and those that the template names ("ipython", "tool_results").
bool knows_role(const std::string& role, std::string_view chat_template) {
  static constexpr std::string_view kRoles[] = {"system", "developer", "user", "assistant", "tool"};
  if (std::ranges::find(kRoles, role) != std::end(kRoles)) return true;
  return !role.empty() && (chat_template.find('\'' + role + '\'') != std::string_view::npos ||
                           chat_template.find('"' + role + '"') != std::string_view::npos);
}

Status read_message(ordered_json& message, const std::string& name,
                    std::string_view chat_template) {
  if (!message.is_object()) return misplaced(name, &message, "an object", "messages");
  if (!message.contains("role") || !message["role"].is_string() ||
      !knows_role(message["role"].get<std::string>(), chat_template))
    return wrong(
        fmt::format("{}.role is {}, must be system, developer, user, assistant, tool or a "
                    "role that the chat template names",
                    name, message.contains("role") ? describe(json(message["role"])) : "missing"),
        "messages");
  drop_nulls(message);
  const bool has_calls = message.contains("tool_calls");
  if (has_calls) KIVI_RETURN_IF_ERROR(read_tool_calls(message["tool_calls"], name + ".tool_calls"));
  const bool has_content = message.contains("content") && !message["content"].is_null();
  if (!has_content) {
    if (has_calls) return ok_status();
    return wrong(name + ".content is missing, must be text", "messages");
  }
  ordered_json& content = message["content"];
  if (content.is_array()) return flatten_content(content, name + ".content");
  if (content.is_string()) return ok_status();
  return wrong(fmt::format("{}.content is {}, must be a string or a list of text parts", name,
                           describe(json(content))),
               "messages");
}

Status read_messages(ordered_json& messages, std::string_view chat_template) {
  if (!messages.is_array() || messages.empty())
    return misplaced("messages", &messages, "a list of at least one message", "messages");
  for (size_t i = 0; i < messages.size(); ++i)
    KIVI_RETURN_IF_ERROR(read_message(messages[i], fmt::format("messages[{}]", i), chat_template));
  return ok_status();
}

Status check_objects(const json* list, const char* name) {
  if (list == nullptr) return ok_status();
  if (!list->is_array())
    return wrong(fmt::format("{} is {}, must be a list of objects", name, describe(*list)), name);
  for (size_t i = 0; i < list->size(); ++i)
    if (!(*list)[i].is_object())
      return wrong(fmt::format("{}[{}] is {}, must be an object", name, i, describe((*list)[i])),
                   name);
  return ok_status();
}

// What tools and tool_choice say.
struct ToolUse {
  enum class Choice { none, automatic, required, named };
  Choice choice = Choice::automatic;
  std::vector<std::string> names;  // of all tools
  size_t named = 0;                // the tool that is demanded
};

Status read_tool_choice(const json* choice, ToolUse& use) {
  if (choice == nullptr || *choice == "auto") return ok_status();
  if (*choice == "none") {
    use.choice = ToolUse::Choice::none;
    return ok_status();
  }
  if (*choice == "required") {
    use.choice = ToolUse::Choice::required;
    if (use.names.empty()) return wrong("tool_choice is required, needs tools", "tool_choice");
    return ok_status();
  }
  if (!choice->is_object() || choice->value("type", json()) != "function" ||
      !choice->contains("function") || !(*choice)["function"].is_object() ||
      !(*choice)["function"].contains("name") || !(*choice)["function"]["name"].is_string())
    return wrong(fmt::format("tool_choice is {}, must be auto, none, required or {{\"type\": "
                             "\"function\", \"function\": {{\"name\": ...}}}}",
                             describe(*choice)),
                 "tool_choice");
  const auto name = (*choice)["function"]["name"].get<std::string>();
  const auto place = std::ranges::find(use.names, name);
  if (place == use.names.end())
    return wrong(fmt::format("tool_choice names the function {}, which is none of tools",
                             describe(json(name))),
                 "tool_choice");
  use.choice = ToolUse::Choice::named;
  use.named = size_t(place - use.names.begin());
  return ok_status();
}

Result<ToolUse> read_tools(JsonFields& fields) {
  ToolUse use;
  const json* tools = fields.raw("tools");
  KIVI_RETURN_IF_ERROR(check_objects(tools, "tools"));
  for (const json& tool : tools == nullptr ? json::array() : *tools) {
    const std::string at = fmt::format("tools[{}].function", use.names.size());
    const auto refused = [](const std::string& where, const json& object, const char* name,
                            const char* must_be) {
      return wrong(fmt::format("{} is {}, must be {}", where,
                               object.contains(name) ? describe(object[name]) : "missing", must_be),
                   "tools");
    };
    if (!tool.contains("function") || !tool["function"].is_object())
      return refused(at, tool, "function", "an object");
    const json& function = tool["function"];
    if (!function.contains("name") || !function["name"].is_string() || function["name"] == "")
      return refused(at + ".name", function, "name", "a string that is not empty");
    use.names.push_back(function["name"].get<std::string>());
  }
  KIVI_RETURN_IF_ERROR(read_tool_choice(fields.raw("tool_choice"), use));
  return use;
}

// References of a schema that stands inside another: "#/..." -> `root` + "/...".
void move_references(ordered_json& schema, const std::string& root) {
  if (schema.is_object()) {
    for (auto& [name, value] : schema.items()) {
      if (name == "$ref" && value.is_string() && value.get_ref<std::string&>().starts_with('#'))
        value = root + value.get_ref<std::string&>().substr(1);
      else
        move_references(value, root);
    }
  } else if (schema.is_array()) {
    for (ordered_json& value : schema) move_references(value, root);
  }
}

ordered_json parameters_of(const ordered_json& tool) {
  const ordered_json& function = tool["function"];
  if (function.contains("parameters") && !function["parameters"].is_null())
    return function["parameters"];
  return {{"type", "object"}, {"additionalProperties", false}};
}

// What the answer must be where a call is demanded: the arguments of the named function, or a list
// of calls.
OutputFormat format_of_calls(std::string_view body, const ToolUse& use, bool parallel) {
  OutputFormat format{OutputFormat::Kind::json_schema, "", {}, "tools"};
  OwnedJson<ordered_json> owned(ordered_json::parse(body));
  const ordered_json& tools = (*owned)["tools"];
  if (use.choice == ToolUse::Choice::named) {
    format.text = parameters_of(tools[use.named]).dump();
    return format;
  }
  ordered_json calls = ordered_json::array(), definitions = ordered_json::object();
  for (size_t i = 0; i < tools.size(); ++i) {
    const std::string name = fmt::format("tool{}", i), root = "#/$defs/" + name;
    definitions[name] = parameters_of(tools[i]);
    move_references(definitions[name], root);
    calls.push_back(
        {{"type", "object"},
         {"properties", {{"name", {{"const", use.names[i]}}}, {"parameters", {{"$ref", root}}}}},
         {"required", {"name", "parameters"}},
         {"additionalProperties", false}});
  }
  ordered_json schema{{"type", "array"}, {"minItems", 1}, {"items", {{"anyOf", calls}}}};
  if (!parallel) schema["maxItems"] = 1;
  schema["$defs"] = std::move(definitions);
  format.text = schema.dump();
  return format;
}

// tools, tool_choice, parallel_tool_calls: how the answer is read, and what it must be.
Status apply_tools(std::string_view body, JsonFields& fields, const ApiRules& rules,
                   CompletionCall& call) {
  const bool parallel = fields.boolean("parallel_tool_calls", true);
  KIVI_RETURN_IF_ERROR(fields.status());
  KIVI_ASSIGN_OR_RETURN(const ToolUse use, read_tools(fields));
  if (use.names.empty() || use.choice == ToolUse::Choice::none) return ok_status();
  if (use.choice == ToolUse::Choice::automatic) {
    if (rules.tool_format != ToolFormat::none)
      call.answer.tools = ToolSetup{rules.tool_format, use.names, parallel};
    return ok_status();
  }
  if (call.request.format)
    return wrong(fmt::format("tool_choice demands a call, which {} does not allow: give one of "
                             "them",
                             call.request.format->field),
                 "tool_choice");
  call.request.format = format_of_calls(body, use, parallel);
  if (use.choice == ToolUse::Choice::required)
    call.answer.tools = ToolSetup{ToolFormat::list, use.names, parallel};
  else
    call.answer.tools = ToolSetup{ToolFormat::arguments, {use.names[use.named]}, parallel};
  return ok_status();
}

// chat_template_kwargs: more variables of the template.
Status add_variables(const ordered_json& more, ordered_json& variables) {
  static constexpr std::string_view kOwn[] = {"messages", "tools", "documents",
                                              "add_generation_prompt"};
  if (!more.is_object())
    return misplaced("chat_template_kwargs", &more, "an object", "chat_template_kwargs");
  for (const auto& [name, value] : more.items()) {
    if (std::ranges::find(kOwn, name) != std::end(kOwn))
      return wrong(
          fmt::format("chat_template_kwargs has {}, which is a parameter of its own", name),
          "chat_template_kwargs." + name);
    variables[name] = value;
  }
  return ok_status();
}

void parse_lengths(JsonFields& fields, SamplingParams& sampling) {
  constexpr int kAll = std::numeric_limits<int>::max();  // cut to what the context holds
  const int old_name = fields.integer("max_tokens", kAll, 1);
  const int new_name = fields.integer("max_completion_tokens", kAll, 1);
  if (old_name != kAll && new_name != kAll && old_name != new_name)
    fields.fail("max_tokens", fmt::format("is {}, must equal max_completion_tokens ({}) where both "
                                          "are given",
                                          old_name, new_name));
  sampling.max_tokens = std::min(old_name, new_name);
}

void parse_logprobs(JsonFields& fields, const ApiRules& rules, SamplingParams& sampling) {
  const bool wanted = fields.boolean("logprobs", false);
  const int top = fields.integer("top_logprobs", 0, 0, rules.max_logprobs);
  if (top > 0 && !wanted)
    fields.fail("top_logprobs", fmt::format("is {}, needs logprobs: true", top));
  sampling.logprobs = wanted ? top : -1;
}

}  // namespace

Result<ChatInput> parse_chat_input(std::string_view body, const json& parsed, JsonFields& fields,
                                   const ApiRules& rules) {
  ChatInput chat;
  if (fields.raw("messages") == nullptr)
    return wrong("messages is missing, must be a list of messages", "messages");
  chat.add_generation_prompt = fields.boolean("add_generation_prompt", true);
  chat.continue_final_message = fields.boolean("continue_final_message", false);
  chat.add_special_tokens = fields.boolean("add_special_tokens", false);
  if (chat.continue_final_message && chat.add_generation_prompt)
    fields.fail("continue_final_message", "is true, needs add_generation_prompt: false");
  KIVI_ASSIGN_OR_RETURN(const ToolUse tools, read_tools(fields));
  const bool tools_wanted = tools.choice != ToolUse::Choice::none;
  KIVI_RETURN_IF_ERROR(check_objects(fields.raw("documents"), "documents"));
  const bool more = fields.raw("chat_template_kwargs") != nullptr;
  const auto effort = fields.text("reasoning_effort");
  if (effort && rules.chat_template.find("reasoning_effort") == std::string_view::npos)
    fields.fail({ErrorCode::unsupported,
                 "reasoning_effort is not supported: the model's chat template does not know it",
                 "reasoning_effort"});
  KIVI_RETURN_IF_ERROR(fields.status());

  KIVI_RETURN_IF_ERROR(check_object_sizes(parsed));
  OwnedJson<ordered_json> owned(ordered_json::parse(body));
  ordered_json& ordered = *owned;
  const auto owned_variables = std::make_shared<OwnedJson<ordered_json>>(ordered_json::object());
  const std::shared_ptr<ordered_json> variables(owned_variables, &**owned_variables);
  (*variables)["messages"] = std::move(ordered["messages"]);
  KIVI_RETURN_IF_ERROR(read_messages((*variables)["messages"], rules.chat_template));
  if (tools_wanted && fields.raw("tools") != nullptr && !ordered["tools"].empty())
    (*variables)["tools"] = std::move(ordered["tools"]);
  if (fields.raw("documents") != nullptr)
    (*variables)["documents"] = std::move(ordered["documents"]);
  if (effort) (*variables)["reasoning_effort"] = *effort;
  if (more) KIVI_RETURN_IF_ERROR(add_variables(ordered["chat_template_kwargs"], *variables));
  chat.variables = variables;
  return chat;
}

Result<ChatCall> parse_chat(std::string_view body, const ApiRules& rules) {
  KIVI_ASSIGN_OR_RETURN(const ParsedJson parsed, parse_request_json(body, rules.stop));
  JsonFields fields(*parsed, "", rules.recorder);
  ChatCall call;
  SamplingParams& sampling = call.completion.request.sampling;
  KIVI_RETURN_IF_ERROR(check_model(fields, rules));
  refuse_unbuilt(fields);
  refuse_fields(fields, {"functions", "function_call", "audio", "prediction", "web_search_options",
                         "chat_template", "echo", "best_of", "prompt", "suffix"});
  refuse_unless(fields, "modalities", {json::array({"text"})});
  refuse_unless(fields, "store", {false});
  KIVI_RETURN_IF_ERROR(fields.status());
  KIVI_ASSIGN_OR_RETURN(call.chat, parse_chat_input(body, *parsed, fields, rules));
  parse_lengths(fields, sampling);
  parse_logprobs(fields, rules, sampling);
  KIVI_RETURN_IF_ERROR(parse_shared_fields(body, fields, rules, call.completion));
  KIVI_RETURN_IF_ERROR(apply_tools(body, fields, rules, call.completion));
  call.completion.answer.reasoning = rules.reasoning;
  KIVI_RETURN_IF_ERROR(validate(sampling, rules.vocab_size, rules.max_logprobs));
  KIVI_RETURN_IF_ERROR(take_unknown(fields, rules, call.completion.unknown_fields));
  call.completion.request.stop_token = rules.stop;
  return call;
}

Result<std::vector<int32_t>> chat_prompt_ids(const ServedModel& model, const ChatInput& chat) {
  if (model.chat == nullptr)
    return wrong(
        "the model has no chat template: start the server with "
        "--chat-template FILE, or "
        "use /v1/completions",
        "messages");
  ChatInput bounded = chat;
  bounded.text_bytes_max = size_t(model.engine->config().max_tokenize_bytes);
  return model.chat->ids(bounded);
}

}  // namespace kivi
