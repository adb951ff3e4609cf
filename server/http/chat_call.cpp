// SPDX-License-Identifier: Apache-2.0
#include "server/http/chat_call.h"

#include <algorithm>
#include <utility>

namespace kivi {
namespace {

ToolFormat tool_format_for(const ServedModel& model, const std::string& parser) {
  if (parser != "auto") return tool_format_of(parser);
  return model.chat == nullptr ? ToolFormat::none
                               : tool_format_of_template(model.chat->template_text());
}

// The mark of a call or of reasoning may be a special token, which the text would leave out.
void show_marks(const ServedModel& model, CompletionCall& call) {
  std::vector<std::string> marks;
  const ToolFormat format = call.answer.tools ? call.answer.tools->format : ToolFormat::none;
  if (format == ToolFormat::mistral) marks.emplace_back("[TOOL_CALLS]");
  if (format == ToolFormat::hermes) marks.emplace_back("<tool_call>");
  if (call.answer.reasoning) {
    marks.push_back(call.answer.reasoning->begin);
    marks.push_back(call.answer.reasoning->end);
  }
  for (const std::string& mark : marks) {
    const auto id = model.tokenizer->token_id(mark);
    if (id && model.tokenizer->token_bytes(*id, /*skip_special=*/true).empty())
      call.request.skip_special_tokens = false;
  }
}

// Some templates begin the reasoning themselves, so that the answer has no mark of its beginning.
bool ends_with_mark(const Tokenizer& tokenizer, const std::vector<int32_t>& ids,
                    const std::string& mark) {
  constexpr size_t kTailTokens = 32;
  const size_t count = std::min(ids.size(), kTailTokens);
  std::string tail = tokenizer.decode(std::span(ids).last(count), /*skip_special=*/false);
  tail.erase(tail.find_last_not_of(" \t\r\n") + 1);
  return tail.ends_with(mark);
}

}  // namespace

ApiRules chat_rules(HttpConnection& connection) {
  const ServerState& state = connection.shared().state;
  const ServedModel& model = *state.model();
  ApiRules rules = api_rules(model, state.config().strict_params, connection.stop_token());
  rules.tool_format = tool_format_for(model, state.config().tool_call_parser);
  const auto tags = reasoning_tags_of(state.config().reasoning_tags, rules.chat_template);
  if (tags.ok()) rules.reasoning = *tags;  // a wrong setting was refused at the start
  return rules;
}

Result<CompletionCall> with_prompt(const ServedModel& model, ChatCall call) {
  KIVI_ASSIGN_OR_RETURN(std::vector<int32_t> ids, chat_prompt_ids(model, call.chat));
  if (auto& reasoning = call.completion.answer.reasoning)
    // A mask holds from the first token on: the answer has reasoning only if it is in the format.
    reasoning->open =
        !call.completion.request.format && ends_with_mark(*model.tokenizer, ids, reasoning->begin);
  show_marks(model, call.completion);
  call.completion.request.prompts.emplace_back(std::move(ids));
  return std::move(call.completion);
}

}  // namespace kivi
