// SPDX-License-Identifier: Apache-2.0
// The engine's types -> the JSON of /v1/chat/completions (openai_api.h).
#include <algorithm>

#include "server/json_writer.h"
#include "server/openai/openai_api.h"

namespace kivi {
namespace {

// "token", "logprob", "bytes".
void append_token(std::string& out, const Tokenizer& tokenizer, std::string_view text, int32_t id,
                  float logprob) {
  out += "\"token\":";
  append_json_string(out, text);
  out += ",\"logprob\":";
  append_json_float(out, logprob);
  out += ",\"bytes\":";
  append_json_list(out, tokenizer.token_bytes(id, /*skip_special=*/false),
                   [&](char byte) { append_json_int(out, static_cast<unsigned char>(byte)); });
}

}  // namespace

ChatWriter::ChatWriter(const ServedModel& model, const CompletionCall& call, int64_t created)
    : ReplyWriter(model, call, created, "chat.completion", "chat.completion.chunk"),
      tokenizer_(*model.tokenizer),
      top_(size_t(std::max(0, call.request.sampling.logprobs))) {}

// {"content": [...]}, one entry a token, each with exactly the `top_logprobs` likeliest.
void ChatWriter::append_logprobs(std::string& out, const TextChunk& chunk) const {
  if (!logprobs_) {
    out += "null";
    return;
  }
  out += "{\"content\":";
  append_json_list(out, chunk.tokens, [&](const ChunkToken& token) {
    out += '{';
    append_token(out, tokenizer_, token.text, token.id, token.logprob.value_or(0));
    out += ",\"top_logprobs\":";
    const size_t count = std::min(top_, token.top.size());
    append_json_list(out, std::span(token.top).first(count), [&](const auto& top) {
      out += '{';
      append_token(out, tokenizer_, top.first, top.second.id, top.second.logprob);
      out += '}';
    });
    out += '}';
  });
  out += '}';
}

void ChatWriter::append_choice(std::string& out, const TextChunk& chunk,
                               const std::vector<int32_t>* prompt_ids) const {
  out += "{\"index\":";
  append_json_int(out, chunk.choice);
  out += ",\"message\":{\"role\":\"assistant\",\"content\":";
  append_json_string(out, chunk.text);
  out += "},\"logprobs\":";
  append_logprobs(out, chunk);
  append_ending(out, chunk, prompt_ids);
  out += '}';
}

// Of an event: the text alone, which a last one may lack.
void ChatWriter::append_delta(std::string& out, const TextChunk& chunk) const {
  out += "{\"index\":";
  append_json_int(out, chunk.choice);
  out += ",\"delta\":{";
  if (!chunk.text.empty() || !chunk.finish) {
    out += "\"content\":";
    append_json_string(out, chunk.text);
  }
  out += "},\"logprobs\":";
  append_logprobs(out, chunk);
  append_ending(out, chunk, nullptr);
  out += '}';
}

void ChatWriter::append_event(std::string& out, const TextChunk& chunk,
                              const Completion& completion) {
  if (begins(chunk.choice)) {
    begin_event(out);
    out += "{\"index\":";
    append_json_int(out, chunk.choice);
    out += ",\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null";
    append_ending(out, {}, prompt_ids(completion, chunk.choice));
    out += '}';
    end_event(out, completion, 0);
  }
  begin_event(out);
  append_delta(out, chunk);
  end_event(out, completion, completion.completion_tokens(chunk.choice));
}

}  // namespace kivi
