// SPDX-License-Identifier: Apache-2.0
// The engine's types -> the JSON of /v1/chat/completions (openai_api.h).
#include <algorithm>

#include "server/json_writer.h"
#include "server/openai/openai_api.h"
#include "server/request_id.h"

namespace kivi {

ChatWriter::ChatWriter(const ServedModel& model, const CompletionCall& call, int64_t created)
    : ReplyWriter(model, call, created, "chat.completion", "chat.completion.chunk"),
      tokenizer_(*model.tokenizer),
      top_(size_t(std::max(0, call.request.sampling.logprobs))),
      answer_(call.answer) {
  for (int i = 0; i < call.request.n; ++i) parsers_.push_back(make_answer_parser(answer_));
}

void ChatWriter::append_calls(std::string& out, std::span<const ToolCallDelta> calls,
                              bool delta) const {
  out += "\"tool_calls\":";
  append_json_list(out, calls, [&](const ToolCallDelta& call) {
    out += '{';
    if (delta) {
      out += "\"index\":";
      append_json_int(out, call.index);
      out += ',';
    }
    if (!call.name.empty()) {
      out += "\"id\":";
      append_json_string(out, make_call_id(answer_, "call_"));
      out += ",\"type\":\"function\",";
    }
    out += "\"function\":{";
    if (!call.name.empty()) {
      out += "\"name\":";
      append_json_string(out, call.name);
      out += ',';
    }
    out += "\"arguments\":";
    append_json_string(out, call.arguments);
    out += "}}";
  });
}

// "token", "logprob", "bytes".
void ChatWriter::append_token(std::string& out, std::string_view text, int32_t id,
                              float logprob) const {
  out += "\"token\":";
  append_shown(out, text, id);
  out += ",\"logprob\":";
  append_json_float(out, logprob);
  out += ",\"bytes\":";
  append_json_list(out, tokenizer_.token_bytes(id, /*skip_special=*/false),
                   [&](char byte) { append_json_int(out, static_cast<unsigned char>(byte)); });
}

// {"content": [...]}, one entry a token, each with exactly the `top_logprobs` likeliest.
void ChatWriter::append_logprobs(std::string& out, const TextChunk& chunk) const {
  if (!logprobs_) {
    out += "null";
    return;
  }
  out += "{\"content\":";
  append_json_list(out, chunk.tokens, [&](const ChunkToken& token) {
    out += '{';
    append_token(out, token.text, token.id, token.logprob.value_or(0));
    out += ",\"top_logprobs\":";
    const size_t count = std::min(top_, token.top.size());
    append_json_list(out, std::span(token.top).first(count), [&](const auto& top) {
      out += '{';
      append_token(out, top.first, top.second.id, top.second.logprob);
      out += '}';
    });
    out += '}';
  });
  out += ",\"refusal\":null}";
}

void ChatWriter::append_choice(std::string& out, const TextChunk& chunk,
                               const std::vector<int32_t>* prompt_ids) const {
  out += "{\"index\":";
  append_json_int(out, chunk.choice);
  out += ",\"message\":{\"role\":\"assistant\",\"content\":";
  const ToolDelta answer = parse_answer(answer_, chunk.text);
  if (answer.content.empty() && !answer.calls.empty())
    out += "null";
  else
    append_json_string(out, answer.content);
  if (answer_.reasoning) {
    out += ",\"reasoning_content\":";
    if (answer.reasoning.empty())
      out += "null";
    else
      append_json_string(out, answer.reasoning);
  }
  out += ",\"refusal\":null";
  if (!answer.calls.empty()) {
    out += ',';
    append_calls(out, answer.calls, /*delta=*/false);
  }
  out += "},\"logprobs\":";
  append_logprobs(out, chunk);
  append_ending(out, chunk, prompt_ids, !answer.calls.empty());
  out += '}';
}

// Of an event: the text alone, which a last one may lack. `parsed`: what the text is made of, where
// it may hold calls.
void ChatWriter::append_delta(std::string& out, const TextChunk& chunk, const ToolDelta* parsed,
                              bool called) const {
  const std::string& text = parsed ? parsed->content : chunk.text;
  const bool calls = parsed != nullptr && !parsed->calls.empty();
  const bool reasoning = parsed != nullptr && !parsed->reasoning.empty();
  out += "{\"index\":";
  append_json_int(out, chunk.choice);
  out += ",\"delta\":{";
  const bool content = !text.empty() || (!chunk.finish && !calls && !reasoning);
  if (reasoning) {
    out += "\"reasoning_content\":";
    append_json_string(out, parsed->reasoning);
    if (content || calls) out += ',';
  }
  if (content) {
    out += "\"content\":";
    append_json_string(out, text);
    if (calls) out += ',';
  }
  if (calls) append_calls(out, parsed->calls, /*delta=*/true);
  out += "},\"logprobs\":";
  append_logprobs(out, chunk);
  append_ending(out, chunk, nullptr, called);
  out += '}';
}

void ChatWriter::append_event(std::string& out, const TextChunk& chunk,
                              const Completion& completion) {
  if (begins(chunk.choice)) {
    begin_event(out);
    out += "{\"index\":";
    append_json_int(out, chunk.choice);
    out +=
        ",\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":"
        "null";
    append_ending(out, {}, nullptr);
    out += '}';
    end_event(out, completion, 0, prompt_ids(completion, chunk.choice));
  }
  if (answer_.plain()) {
    begin_event(out);
    append_delta(out, chunk, nullptr, false);
    end_event(out, completion, completion.completion_tokens(chunk.choice));
    return;
  }
  ToolParser& parser = *parsers_[size_t(chunk.choice)];
  const ToolDelta parsed = read_piece(answer_, &parser, chunk.text, chunk.finish.has_value());
  // Text that may become a call is held back; tokens are not.
  if (parsed.empty() && !chunk.finish && !logprobs_ && !return_token_ids_) return;
  begin_event(out);
  append_delta(out, chunk, &parsed, parser.calls() > 0);
  end_event(out, completion, completion.completion_tokens(chunk.choice));
}

}  // namespace kivi
