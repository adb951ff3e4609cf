// SPDX-License-Identifier: Apache-2.0
// What the handlers of all dialects of chats share.
#pragma once

#include "server/http/http_connection.h"
#include "server/openai/openai_api.h"

namespace kivi {

// What a chat is judged by: the rules of a completion, and how the model writes tool calls and
// reasoning.
ApiRules chat_rules(HttpConnection& connection);

// Turns the chat into the prompt of its completion. The errors are those of chat_prompt_ids().
Result<CompletionCall> with_prompt(const ServedModel& model, ChatCall call);

}  // namespace kivi
