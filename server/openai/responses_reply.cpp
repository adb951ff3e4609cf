// SPDX-License-Identifier: Apache-2.0
// The engine's types -> the JSON of /v1/responses (responses_api.h).
#include <utility>

#include "server/api_error.h"
#include "server/json_writer.h"
#include "server/openai/responses_api.h"
#include "server/request_id.h"

namespace kivi {
namespace {

std::string head_of(const ServedModel& model, const CompletionCall& call, int64_t created) {
  std::string out = "{\"id\":";
  append_json_string(out, call.request.id);
  out += ",\"object\":\"response\",\"created_at\":";
  append_json_int(out, created);
  out += ",\"model\":";
  append_json_string(out, model.name);
  return out;
}

void append_usage(std::string& out, const Usage& usage, int64_t reasoning_tokens) {
  out += "{\"input_tokens\":";
  append_json_int(out, usage.prompt_tokens);
  out += ",\"input_tokens_details\":{\"cached_tokens\":";
  append_json_int(out, usage.cached_tokens);
  out += ",\"cache_write_tokens\":0},\"output_tokens\":";
  append_json_int(out, usage.completion_tokens);
  out += ",\"output_tokens_details\":{\"reasoning_tokens\":";
  append_json_int(out, reasoning_tokens);
  out += "},\"total_tokens\":";
  append_json_int(out, int64_t(usage.prompt_tokens) + usage.completion_tokens);
  out += '}';
}

// A part of a message's or a reasoning's content.
void append_part(std::string& out, bool reasoning, std::string_view text) {
  out +=
      reasoning ? "{\"type\":\"reasoning_text\",\"text\":" : "{\"type\":\"output_text\",\"text\":";
  append_json_string(out, text);
  out += reasoning ? "}" : ",\"annotations\":[],\"logprobs\":[]}";
}

void append_head(std::string& out, const char* type, std::string_view id, const char* status) {
  out += "{\"type\":\"";
  out += type;
  out += "\",\"id\":";
  append_json_string(out, id);
  out += ",\"status\":\"";
  out += status;
  out += '"';
}

// `text`: null = there is no part yet.
void append_text_item(std::string& out, bool reasoning, std::string_view id, const char* status,
                      const std::string* text) {
  append_head(out, reasoning ? "reasoning" : "message", id, status);
  out += reasoning ? ",\"summary\":[],\"content\":[" : ",\"role\":\"assistant\",\"content\":[";
  if (text != nullptr) append_part(out, reasoning, *text);
  out += "]}";
}

void append_call_item(std::string& out, std::string_view id, std::string_view call_id,
                      std::string_view name, std::string_view arguments, const char* status) {
  append_head(out, "function_call", id, status);
  out += ",\"call_id\":";
  append_json_string(out, call_id);
  out += ",\"name\":";
  append_json_string(out, name);
  out += ",\"arguments\":";
  append_json_string(out, arguments);
  out += '}';
}

std::string new_id(const char* prefix) { return prefix + make_request_id().substr(0, 24); }

const char* status_of(std::optional<FinishReason> finish) {
  if (finish == FinishReason::stop) return "completed";
  return finish == FinishReason::length ? "incomplete" : "cancelled";
}

}  // namespace

ResponsesWriter::ResponsesWriter(const ServedModel& model, const CompletionCall& call,
                                 std::string echo, int64_t created)
    : tokenizer_(*model.tokenizer),
      head_(head_of(model, call, created)),
      echo_(std::move(echo)),
      answer_(call.answer),
      parser_(make_answer_parser(call.answer)) {}

void ResponsesWriter::append_response(std::string& out, const char* status, std::string_view output,
                                      const Usage* usage, std::string_view reasoning,
                                      const Error* error) const {
  out += head_;
  out += ",\"status\":\"";
  out += status;
  out += "\",\"error\":";
  if (error != nullptr) {
    out += "{\"code\":\"server_error\",\"message\":";
    append_json_string(out, error->message);
    out += '}';
  } else {
    out += "null";
  }
  out += ",\"incomplete_details\":";
  out += std::string_view(status) == "incomplete" ? "{\"reason\":\"max_output_tokens\"}" : "null";
  out += ",\"output\":[";
  out += output;
  out += ']';
  out += echo_;
  out += ",\"usage\":";
  if (usage != nullptr)
    append_usage(
        out, *usage,
        reasoning.empty() ? 0 : int64_t(tokenizer_.encode(std::string(reasoning), false).size()));
  else
    out += "null";
  out += '}';
}

std::string ResponsesWriter::whole(std::span<const TextChunk> chunks,
                                   const Completion& completion) const {
  const std::map<int, TextChunk> choices = join_choices(chunks);
  const TextChunk chunk = choices.empty() ? TextChunk{} : choices.begin()->second;
  const ToolDelta answer = parse_answer(answer_, chunk.text);
  const char* status = status_of(chunk.finish);
  const char* last = std::string_view(status) == "completed" ? "completed" : "incomplete";
  std::string output;
  if (!answer.reasoning.empty())
    append_text_item(output, true, new_id("rs_"), "completed", &answer.reasoning);
  if (!answer.content.empty() || answer.calls.empty()) {
    if (!output.empty()) output += ',';
    append_text_item(output, false, new_id("msg_"), answer.calls.empty() ? last : "completed",
                     &answer.content);
  }
  for (const ToolCallDelta& call : answer.calls) {
    if (!output.empty()) output += ',';
    append_call_item(output, new_id("fc_"), make_call_id(answer_, "call_"), call.name,
                     call.arguments, &call == &answer.calls.back() ? last : "completed");
  }
  std::string out;
  const Usage usage = completion.usage();
  append_response(out, status, output, &usage, answer.reasoning);
  return out;
}

void ResponsesWriter::begin_event(std::string& out, const char* type) {
  out += "event: ";
  out += type;
  out += "\ndata: {\"type\":\"";
  out += type;
  out += "\",\"sequence_number\":";
  append_json_int(out, sequence_++);
}

void ResponsesWriter::begin_item_event(std::string& out, const char* type) {
  begin_event(out, type);
  out += ",\"output_index\":";
  append_json_int(out, items_ - 1);
  out += ",\"item_id\":";
  append_json_string(out, id_);
  if (item_ != Item::call) out += ",\"content_index\":0";
}

std::string ResponsesWriter::item_json(const char* status) const {
  std::string out;
  const bool begun = std::string_view(status) != "in_progress";
  if (item_ == Item::call)
    append_call_item(out, id_, call_id_, name_, text_, status);
  else
    append_text_item(out, item_ == Item::reasoning, id_, status, begun ? &text_ : nullptr);
  return out;
}

void ResponsesWriter::open(std::string& out, Item kind, const ToolCallDelta* call) {
  if (item_ == kind && kind != Item::call) return;
  std::string blanks = kind == Item::message ? std::exchange(blanks_, {}) : std::string();
  close(out, "completed");
  blanks_ = std::move(blanks);
  item_ = kind;
  id_ = new_id(kind == Item::call ? "fc_" : kind == Item::message ? "msg_" : "rs_");
  text_.clear();
  ++items_;
  if (call != nullptr) {
    name_ = call->name;
    call_id_ = make_call_id(answer_, "call_");
  }
  begin_event(out, "response.output_item.added");
  out += ",\"output_index\":";
  append_json_int(out, items_ - 1);
  out += ",\"item\":";
  out += item_json("in_progress");
  out += "}\n\n";
  if (kind == Item::call) return;
  begin_item_event(out, "response.content_part.added");
  out += ",\"part\":";
  append_part(out, kind == Item::reasoning, "");
  out += "}\n\n";
}

void ResponsesWriter::close(std::string& out, const char* status) {
  blanks_.clear();
  if (item_ == Item::none) return;
  if (item_ == Item::call) {
    begin_item_event(out, "response.function_call_arguments.done");
    out += ",\"name\":";
    append_json_string(out, name_);
    out += ",\"arguments\":";
    append_json_string(out, text_);
    out += "}\n\n";
  } else {
    const bool reasoning = item_ == Item::reasoning;
    begin_item_event(out, reasoning ? "response.reasoning_text.done" : "response.output_text.done");
    out += ",\"text\":";
    append_json_string(out, text_);
    out += reasoning ? "}\n\n" : ",\"logprobs\":[]}\n\n";
    begin_item_event(out, "response.content_part.done");
    out += ",\"part\":";
    append_part(out, reasoning, text_);
    out += "}\n\n";
  }
  const std::string item = item_json(status);
  begin_event(out, "response.output_item.done");
  out += ",\"output_index\":";
  append_json_int(out, items_ - 1);
  out += ",\"item\":";
  out += item;
  out += "}\n\n";
  if (!output_.empty()) output_ += ',';
  output_ += item;
  item_ = Item::none;
}

void ResponsesWriter::write_text(std::string& out, Item kind, std::string_view text) {
  open(out, kind);
  begin_item_event(out, kind == Item::reasoning ? "response.reasoning_text.delta"
                                                : "response.output_text.delta");
  out += ",\"delta\":";
  append_json_string(out, text);
  out += kind == Item::reasoning ? "}\n\n" : ",\"logprobs\":[]}\n\n";
  text_ += text;
}

void ResponsesWriter::write_delta(std::string& out, const ToolDelta& delta) {
  if (!delta.reasoning.empty()) {
    write_text(out, Item::reasoning, delta.reasoning);
    reasoning_ += delta.reasoning;
  }
  if (!delta.content.empty()) {
    blanks_ += delta.content;
    // Where the answer may hold calls, an item of blanks alone stands between two of them.
    if (!answer_.tools || !is_blank(blanks_)) {
      open(out, Item::message);
      write_text(out, Item::message, std::exchange(blanks_, {}));
    }
  }
  for (const ToolCallDelta& call : delta.calls) {
    if (!call.name.empty()) open(out, Item::call, &call);
    if (call.arguments.empty()) continue;
    begin_item_event(out, "response.function_call_arguments.delta");
    out += ",\"delta\":";
    append_json_string(out, call.arguments);
    out += "}\n\n";
    text_ += call.arguments;
  }
}

void ResponsesWriter::append_event(std::string& out, const TextChunk& chunk, const Completion&) {
  if (!std::exchange(started_, true))
    for (const char* type : {"response.created", "response.in_progress"}) {
      begin_event(out, type);
      out += ",\"response\":";
      append_response(out, "in_progress", "", nullptr, "");
      out += "}\n\n";
    }
  write_delta(out, read_piece(answer_, parser_.get(), chunk.text, chunk.finish.has_value()));
  if (chunk.finish) finish_ = chunk.finish;
}

void ResponsesWriter::append_end(std::string& out, const Completion& completion) {
  const char* status = status_of(finish_);
  const bool completed = std::string_view(status) == "completed";
  if (items_ == 0) open(out, Item::message);  // an answer without text
  close(out, completed ? "completed" : "incomplete");
  begin_event(out, completed ? "response.completed" : "response.incomplete");
  out += ",\"response\":";
  const Usage usage = completion.usage();
  append_response(out, status, output_, &usage, reasoning_);
  out += "}\n\n";
}

void ResponsesWriter::append_failure(std::string& out, const Error& error) {
  const ApiError api = to_api_error(error);
  begin_event(out, "error");
  out += ",\"code\":";
  append_json_string(out, api.kind.code);
  out += ",\"message\":";
  append_json_string(out, api.message);
  out += ",\"param\":null}\n\n";
  begin_event(out, "response.failed");
  out += ",\"response\":";
  append_response(out, "failed", output_, nullptr, "", &error);
  out += "}\n\n";
}

}  // namespace kivi
