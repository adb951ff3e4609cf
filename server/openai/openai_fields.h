// SPDX-License-Identifier: Apache-2.0
// Readers of the fields that completions and chats have in common (openai_request.cpp). Included by
// openai_*.cpp alone.
#pragma once

#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "server/openai/json_reader.h"
#include "server/openai/openai_api.h"

namespace kivi {

// Refuses parameters that this build does not have (unsupported).
void refuse_fields(JsonFields& fields, std::initializer_list<const char*> names);
// Refuses a parameter (unsupported) unless its value is one of `neutral`, which change nothing.
void refuse_unless(JsonFields& fields, const char* name,
                   std::initializer_list<nlohmann::json> neutral);
// Refuses those that neither completions nor chats have.
void refuse_unbuilt(JsonFields& fields);

// Reads a prompt: a string, a list of strings, a list of ids, or a list of lists of ids. `name` is
// the field that holds it.
Result<std::vector<std::variant<std::string, std::vector<int32_t>>>> parse_prompts(
    const nlohmann::json* value, const char* name, int vocab_size);

// Returns error invalid if an object has too many fields: an object that keeps the order of its
// members looks them up one by one.
Status check_object_sizes(const nlohmann::json& value);

// Reads what the output must be: response_format, structured_outputs or one of the guided_ names.
// Returns nothing if the request asks for no format. The fields were parsed from `body`: the
// properties of a schema keep its order. Lives in openai_format.cpp.
Result<std::optional<OutputFormat>> parse_format(std::string_view body, JsonFields& fields);

// If `model` is given, it must be the served one (not_found).
Status check_model(JsonFields& fields, const ApiRules& rules);

// Reads sampling (without max_tokens and logprobs), n, stop, stream and its options, ids, priority,
// ...
Status parse_shared_fields(std::string_view body, JsonFields& fields, const ApiRules& rules,
                           CompletionCall& call);

// Reads truncate_prompt_tokens and truncation_side.
void parse_prompt_limits(JsonFields& fields, CompletionRequest& request);
// Reads what every request may have: priority, cache, cache_salt, user and request_id.
void parse_request_fields(JsonFields& fields, CompletionCall& call);

// Reads what the prompt of a chat is made of: messages, tools, documents, add_generation_prompt,
// ... `parsed` was parsed from `body`. The template sees members in the order of `body`.
Result<ChatInput> parse_chat_input(std::string_view body, const nlohmann::json& parsed,
                                   JsonFields& fields, const ApiRules& rules);

// Notes the fields that no reader asked for, or refuses them (strict_params). Call it last.
Status take_unknown(const JsonFields& fields, const ApiRules& rules,
                    std::vector<std::string>& unknown);

}  // namespace kivi
