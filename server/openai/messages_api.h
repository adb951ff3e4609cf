// SPDX-License-Identifier: Apache-2.0
// The JSON of /v1/messages (Anthropic's dialect) <-> that of a chat. A request is translated into a
// chat, so that both dialects have one reading of messages, tools and sampling.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "server/api_error.h"
#include "server/openai/openai_api.h"

namespace kivi {

// Errors: as parse_chat. Their fields and messages have the names of this dialect.
Result<ChatCall> parse_messages(std::string_view body, const ApiRules& rules);
// The body of /v1/messages/count_tokens, which needs no max_tokens.
Result<ChatCall> parse_count_tokens(std::string_view body, const ApiRules& rules);

// Gives an error of a chat the names of this dialect.
Error messages_error(Error error);

// {"type":"error","error":{"type":…,"message":…},"request_id":…}, one line.
std::string messages_error_json(const ApiError& error, std::string_view request_id);

class MessagesWriter final : public AnswerWriter {
 public:
  MessagesWriter(const ServedModel& model, const CompletionCall& call);

  void append_event(std::string& out, const TextChunk& chunk,
                    const Completion& completion) override;
  void append_end(std::string& out, const Completion& completion) override;
  void append_failure(std::string& out, const Error& error) override;
  std::string whole(std::span<const TextChunk> chunks, const Completion& completion) const override;

 private:
  enum class Block { none, thinking, text, tool };

  // {"id":…,"type":"message","role":"assistant","model":…  without its end.
  void append_head(std::string& out) const;
  // "stop_reason":…,"stop_sequence":…,"stop_details":null
  static void append_stop(std::string& out, const TextChunk& chunk, bool called);
  void write_delta(std::string& out, const ToolDelta& delta);
  // Ends the open block, if it is of another kind, and begins one with `content`.
  void open(std::string& out, Block kind, std::string_view content);
  void close(std::string& out);
  void append_piece(std::string& out, const char* type, const char* member,
                    std::string_view text) const;

  const std::string id_, model_;
  const AnswerSetup answer_;
  std::unique_ptr<ToolParser> parser_;  // null for a plain answer
  bool started_ = false;
  Block block_ = Block::none;
  int blocks_ = 0;      // begun so far
  std::string blanks_;  // text that is written only if more follows in its block
  TextChunk last_;      // the end of the choice
};

}  // namespace kivi
