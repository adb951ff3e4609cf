// SPDX-License-Identifier: Apache-2.0
#include <nlohmann/json.hpp>

#include "engine/serving/chat_prompt.h"
#include "server/http/http_message.h"
#include "server/openai/json_reader.h"
#include "server/openai/messages_api.h"
#include "server/openai/openai_api.h"
#include "server/openai/responses_api.h"
#include "tests/fuzz/fuzz_model.h"
#include "tests/fuzz/targets.h"

namespace kivi::fuzz {
namespace {

// A refusal is a reply of JSON that blames the client. True where there is none.
template <class T>
bool accepted(const Result<T>& result) {
  if (result.ok()) return true;
  const HttpReply reply = error_reply(result.error());
  KIVI_VERIFY(reply.status >= 400 && reply.status != 500);
  KIVI_VERIFY(!nlohmann::json::parse(reply.body, nullptr, false).is_discarded());
  return false;
}

}  // namespace

bool read_json(std::string_view bytes) {
  const auto ours = parse_request_json(bytes);
  if (accepted(ours)) {
    const auto theirs = nlohmann::json::parse(bytes, nullptr, /*allow_exceptions=*/false);
    KIVI_VERIFY(!theirs.is_discarded() && **ours == theirs);
  }
  const ServedModel& model = fuzz_model();
  const ApiRules rules = api_rules(model, /*strict_params=*/bytes.size() % 2 == 1);
  const auto completion = parse_completion(bytes, rules);
  const auto chat = parse_chat(bytes, rules);
  const auto tokenize = parse_tokenize(bytes, rules);
  const auto detokenize = parse_detokenize(bytes, rules);
  bool any = accepted(completion);
  any = accepted(tokenize) || any;
  any = accepted(detokenize) || any;
  any = accepted(parse_count_tokens(bytes, rules)) || any;
  if (accepted(chat)) any = accepted(chat_prompt_ids(model, chat->chat)) || any;
  const auto messages = parse_messages(bytes, rules);
  if (accepted(messages)) any = accepted(chat_prompt_ids(model, messages->chat)) || any;
  const auto responses = parse_responses(bytes, rules);
  if (accepted(responses)) any = accepted(chat_prompt_ids(model, responses->chat.chat)) || any;
  return any;
}

}  // namespace kivi::fuzz
