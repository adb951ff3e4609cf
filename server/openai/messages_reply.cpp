// SPDX-License-Identifier: Apache-2.0
// The engine's types -> the JSON of /v1/messages (messages_api.h).
#include <utility>

#include "server/json_writer.h"
#include "server/openai/messages_api.h"

namespace kivi {
namespace {

// Tokens that the prefix cache had are counted apart from the other ones of the prompt.
void append_messages_usage(std::string& out, const Usage& usage) {
  out += "{\"input_tokens\":";
  append_json_int(out, usage.prompt_tokens - usage.cached_tokens);
  out += ",\"cache_creation_input_tokens\":0,\"cache_read_input_tokens\":";
  append_json_int(out, usage.cached_tokens);
  out += ",\"output_tokens\":";
  append_json_int(out, usage.completion_tokens);
  out += '}';
}

const char* type_of(const ErrorKind& kind) {
  switch (kind.http) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 408:
      return "timeout_error";
    case 413:
      return "request_too_large";
    case 429:
      return "rate_limit_error";
    case 503:
      return "overloaded_error";
    default:
      return kind.http < 500 ? "invalid_request_error" : "api_error";
  }
}

void append_error(std::string& out, const ApiError& error) {
  out += "{\"type\":\"error\",\"error\":{\"type\":";
  append_json_string(out, type_of(error.kind));
  out += ",\"message\":";
  append_json_string(out, error.message);
  out += '}';
}

void append_thinking(std::string& out, std::string_view text) {
  out += "{\"type\":\"thinking\",\"thinking\":";
  append_json_string(out, text);
  out += ",\"signature\":\"\"}";
}

void append_text(std::string& out, std::string_view text) {
  out += "{\"type\":\"text\",\"text\":";
  append_json_string(out, text);
  out += '}';
}

// `input`: a JSON object.
void append_tool_use(std::string& out, const std::string& id, std::string_view name,
                     std::string_view input) {
  out += "{\"type\":\"tool_use\",\"id\":";
  append_json_string(out, id);
  out += ",\"name\":";
  append_json_string(out, name);
  out += ",\"input\":";
  out += input;
  out += '}';
}

void begin_event(std::string& out, const char* type) {
  out += "event: ";
  out += type;
  out += "\ndata: {\"type\":\"";
  out += type;
  out += '"';
}

}  // namespace

std::string messages_error_json(const ApiError& error, std::string_view request_id) {
  std::string out;
  append_error(out, error);
  out += ",\"request_id\":";
  append_json_string(out, request_id);
  out += '}';
  return out;
}

MessagesWriter::MessagesWriter(const ServedModel& model, const CompletionCall& call)
    : id_(call.request.id),
      model_(model.name),
      answer_(call.answer),
      parser_(make_answer_parser(call.answer)) {}

void MessagesWriter::append_head(std::string& out) const {
  out += "{\"id\":";
  append_json_string(out, id_);
  out += ",\"type\":\"message\",\"role\":\"assistant\",\"model\":";
  append_json_string(out, model_);
}

void MessagesWriter::append_stop(std::string& out, const TextChunk& chunk, bool called) {
  const auto* text = std::get_if<std::string>(&chunk.stop_reason);
  const bool stopped = chunk.finish == FinishReason::stop;
  out += "\"stop_reason\":\"";
  if (stopped)
    out += text != nullptr ? "stop_sequence" : called ? "tool_use" : "end_turn";
  else
    // An answer that was aborted can be sent back, to be continued.
    out += chunk.finish == FinishReason::length ? "max_tokens" : "pause_turn";
  out += "\",\"stop_sequence\":";
  if (stopped && text != nullptr)
    append_json_string(out, *text);
  else
    out += "null";
  // Says more about a refusal alone, which no model here makes.
  out += ",\"stop_details\":null";
}

std::string MessagesWriter::whole(std::span<const TextChunk> chunks,
                                  const Completion& completion) const {
  const std::map<int, TextChunk> choices = join_choices(chunks);
  const TextChunk chunk = choices.empty() ? TextChunk{} : choices.begin()->second;
  const ToolDelta answer = parse_answer(answer_, chunk.text);
  std::string out;
  append_head(out);
  out += ",\"content\":[";
  if (!answer.reasoning.empty()) append_thinking(out, answer.reasoning);
  if (!answer.content.empty()) {
    if (out.back() != '[') out += ',';
    append_text(out, answer.content);
  }
  for (const ToolCallDelta& call : answer.calls) {
    if (out.back() != '[') out += ',';
    append_tool_use(out, make_call_id(answer_, "toolu_"), call.name,
                    json_object_or_empty(call.arguments));
  }
  out += "],";
  append_stop(out, chunk, !answer.calls.empty());
  out += ",\"usage\":";
  append_messages_usage(out, completion.usage());
  out += '}';
  return out;
}

void MessagesWriter::close(std::string& out) {
  blanks_.clear();
  if (block_ == Block::none) return;
  begin_event(out, "content_block_stop");
  out += ",\"index\":";
  append_json_int(out, blocks_ - 1);
  out += "}\n\n";
  block_ = Block::none;
}

void MessagesWriter::open(std::string& out, Block kind, std::string_view content) {
  if (block_ == kind && kind != Block::tool) return;
  std::string blanks = kind == Block::text ? std::exchange(blanks_, {}) : std::string();
  close(out);
  blanks_ = std::move(blanks);
  begin_event(out, "content_block_start");
  out += ",\"index\":";
  append_json_int(out, blocks_++);
  out += ",\"content_block\":";
  out += content;
  out += "}\n\n";
  block_ = kind;
}

void MessagesWriter::append_piece(std::string& out, const char* type, const char* member,
                                  std::string_view text) const {
  begin_event(out, "content_block_delta");
  out += ",\"index\":";
  append_json_int(out, blocks_ - 1);
  out += ",\"delta\":{\"type\":\"";
  out += type;
  out += "\",\"";
  out += member;
  out += "\":";
  append_json_string(out, text);
  out += "}}\n\n";
}

void MessagesWriter::write_delta(std::string& out, const ToolDelta& delta) {
  if (!delta.reasoning.empty()) {
    open(out, Block::thinking, R"({"type":"thinking","thinking":"","signature":""})");
    append_piece(out, "thinking_delta", "thinking", delta.reasoning);
  }
  if (!delta.content.empty()) {
    blanks_ += delta.content;
    // Where the answer may hold calls, a block of blanks alone stands between two of them.
    if (!answer_.tools || !is_blank(blanks_)) {
      open(out, Block::text, R"({"type":"text","text":""})");
      append_piece(out, "text_delta", "text", std::exchange(blanks_, {}));
    }
  }
  for (const ToolCallDelta& call : delta.calls) {
    if (!call.name.empty()) {
      std::string block;
      append_tool_use(block, make_call_id(answer_, "toolu_"), call.name, "{}");
      open(out, Block::tool, block);
    }
    if (!call.arguments.empty())
      append_piece(out, "input_json_delta", "partial_json", call.arguments);
  }
}

void MessagesWriter::append_event(std::string& out, const TextChunk& chunk,
                                  const Completion& completion) {
  if (!std::exchange(started_, true)) {
    begin_event(out, "message_start");
    out += ",\"message\":";
    append_head(out);
    out +=
        ",\"content\":[],\"stop_reason\":null,\"stop_sequence\":null,\"stop_details\":null,"
        "\"usage\":";
    Usage usage = completion.usage();
    usage.completion_tokens = 0;
    append_messages_usage(out, usage);
    out += "}}\n\n";
  }
  write_delta(out, read_piece(answer_, parser_.get(), chunk.text, chunk.finish.has_value()));
  if (!chunk.finish) return;
  last_.finish = chunk.finish;
  last_.stop_reason = chunk.stop_reason;
}

void MessagesWriter::append_end(std::string& out, const Completion& completion) {
  close(out);
  begin_event(out, "message_delta");
  out += ",\"delta\":{";
  append_stop(out, last_, parser_ != nullptr && parser_->calls() > 0);
  out += "},\"usage\":";
  append_messages_usage(out, completion.usage());
  out += "}\n\n";
  begin_event(out, "message_stop");
  out += "}\n\n";
}

void MessagesWriter::append_failure(std::string& out, const Error& error) {
  out += "event: error\ndata: ";
  append_error(out, to_api_error(error));
  out += "}\n\n";
}

}  // namespace kivi
