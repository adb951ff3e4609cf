// SPDX-License-Identifier: Apache-2.0
// The JSON of /v1/responses, without a store <-> that of a chat. A request is translated into a
// chat, so that both have one reading of messages, tools and sampling.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "server/openai/openai_api.h"

namespace kivi {

struct ResponsesCall {
  ChatCall chat;
  // What the response repeats of the request: members of an object, with a comma before each.
  std::string echo;
};

// Errors: as parse_chat. Their fields and messages have the names of this dialect.
Result<ResponsesCall> parse_responses(std::string_view body, const ApiRules& rules);

// Gives an error of a chat the names of this dialect.
Error responses_error(Error error);

class ResponsesWriter final : public AnswerWriter {
 public:
  // `created`: unix seconds.
  ResponsesWriter(const ServedModel& model, const CompletionCall& call, std::string echo,
                  int64_t created);

  void append_event(std::string& out, const TextChunk& chunk,
                    const Completion& completion) override;
  void append_end(std::string& out, const Completion& completion) override;
  void append_failure(std::string& out, const Error& error) override;
  std::string whole(std::span<const TextChunk> chunks, const Completion& completion) const override;

 private:
  enum class Item { none, reasoning, message, call };

  // The response. `output`: its items. `usage`: null = the response has not ended.
  void append_response(std::string& out, const char* status, std::string_view output,
                       const Usage* usage, std::string_view reasoning,
                       const Error* error = nullptr) const;
  // "event: …", "data: {"type":…,"sequence_number":…"
  void begin_event(std::string& out, const char* type);
  // The same with the place of the open item.
  void begin_item_event(std::string& out, const char* type);
  // The open item as JSON.
  std::string item_json(const char* status) const;
  // Ends the open item, if it is of another kind, and begins one.
  void open(std::string& out, Item kind, const ToolCallDelta* call = nullptr);
  void close(std::string& out, const char* status);
  void write_text(std::string& out, Item kind, std::string_view text);
  void write_delta(std::string& out, const ToolDelta& delta);

  const Tokenizer& tokenizer_;
  const std::string head_;  // {"id":…,"object":"response",… up to the status
  const std::string echo_;
  const AnswerSetup answer_;
  std::unique_ptr<ToolParser> parser_;  // null for a plain answer
  bool started_ = false;
  int64_t sequence_ = 0;  // of events
  Item item_ = Item::none;
  int items_ = 0;                           // begun so far
  std::string id_, text_, name_, call_id_;  // of the open item; text_: or the arguments of a call
  std::string blanks_;                      // text that is written only if more follows
  std::string output_;                      // the items that have ended
  std::string reasoning_;                   // all of it
  std::optional<FinishReason> finish_;
};

}  // namespace kivi
