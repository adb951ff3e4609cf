// SPDX-License-Identifier: Apache-2.0
// Readers of the fields that completions and chats have in common
// (openai_request.cpp). Included by openai_*.cpp alone.
#pragma once

#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "server/openai/json_reader.h"
#include "server/openai/openai_api.h"

namespace kivi {

// Parameters that this build does not have: understood, and refused
// (unsupported).
void refuse_fields(JsonFields& fields, std::initializer_list<const char*> names);
// Those that neither completions nor chats have.
void refuse_unbuilt(JsonFields& fields);

// Error invalid where an object has too many fields: objects that keep their
// order look members up one by one.
Status check_object_sizes(const nlohmann::json& value);

// What the output must be: response_format, structured_outputs or one of the
// guided_ names; none where nothing is asked for. `body` is what the fields
// were parsed from: a schema's properties keep their order. openai_format.cpp.
Result<std::optional<OutputFormat>> parse_format(std::string_view body, JsonFields& fields);

// `model`, where it stands, must be the served one (not_found).
Status check_model(JsonFields& fields, const ApiRules& rules);

// Sampling but for max_tokens and logprobs, n, stop, stream and its options,
// ids, priority, ...
Status parse_shared_fields(std::string_view body, JsonFields& fields, const ApiRules& rules,
                           CompletionCall& call);

// What a chat's prompt is made of: messages, tools, documents,
// add_generation_prompt, ... `body` is what `parsed` was parsed from: the
// template sees members in their order.
Result<ChatInput> parse_chat_input(std::string_view body, const nlohmann::json& parsed,
                                   JsonFields& fields);

// Notes the fields that nobody asked for, or refuses them (strict_params). Last
// of all.
Status take_unknown(const JsonFields& fields, const ApiRules& rules,
                    std::vector<std::string>& unknown);

}  // namespace kivi
