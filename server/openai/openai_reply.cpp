// SPDX-License-Identifier: Apache-2.0
// The engine's types -> reply JSON (openai_api.h).
#include <algorithm>
#include <map>
#include <utility>

#include "server/api_error.h"
#include "server/json_writer.h"
#include "server/openai/openai_api.h"

namespace kivi {
namespace {

void append_usage(std::string& out, const Usage& usage) {
  out += "{\"prompt_tokens\":";
  append_json_int(out, usage.prompt_tokens);
  out += ",\"completion_tokens\":";
  append_json_int(out, usage.completion_tokens);
  out += ",\"total_tokens\":";
  append_json_int(out, int64_t(usage.prompt_tokens) + usage.completion_tokens);
  out += ",\"prompt_tokens_details\":{\"cached_tokens\":";
  append_json_int(out, usage.cached_tokens);
  out += "}}";
}

void append_prompt_ids(std::string& out, const std::vector<int32_t>& ids) {
  append_json_list(out, ids, [&](int32_t id) { append_json_int(out, id); });
}

// The generated ones; the echoed prompt's stand in prompt_token_ids.
void append_output_ids(std::string& out, const TextChunk& chunk) {
  const std::span<const ChunkToken> tokens = std::span(chunk.tokens).subspan(chunk.prompt_tokens);
  append_json_list(out, tokens, [&](const ChunkToken& t) { append_json_int(out, t.id); });
}

void append_stop_reason(std::string& out, const TextChunk& chunk) {
  if (const auto* id = std::get_if<int32_t>(&chunk.stop_reason))
    append_json_int(out, *id);
  else if (const auto* text = std::get_if<std::string>(&chunk.stop_reason))
    append_json_string(out, *text);
  else
    out += "null";
}

}  // namespace

std::map<int, TextChunk> join_choices(std::span<const TextChunk> chunks) {
  std::map<int, TextChunk> choices;
  for (const TextChunk& chunk : chunks) {
    TextChunk& whole = choices[chunk.choice];
    whole.choice = chunk.choice;
    whole.text += chunk.text;
    whole.prompt_tokens += chunk.prompt_tokens;  // the prompt comes first, so they stay in front
    whole.tokens.insert(whole.tokens.end(), chunk.tokens.begin(), chunk.tokens.end());
    if (chunk.finish) {
      whole.finish = chunk.finish;
      whole.stop_reason = chunk.stop_reason;
    }
  }
  return choices;
}

ReplyWriter::ReplyWriter(const ServedModel& model, const CompletionCall& call, int64_t created,
                         const char* object, const char* chunk_object)
    : logprobs_(call.request.sampling.logprobs >= 0),
      return_token_ids_(call.return_token_ids),
      ids_as_tokens_(call.ids_as_tokens),
      include_usage_(call.include_usage),
      continuous_usage_(call.continuous_usage),
      n_(call.request.n),
      started_(call.request.prompts.size() * size_t(call.request.n)) {
  const auto head = [&](std::string& out, const char* name) {
    out = "{\"id\":";
    append_json_string(out, call.request.id);
    out += ",\"object\":";
    append_json_string(out, name);
    out += ",\"created\":";
    append_json_int(out, created);
    out += ",\"model\":";
    append_json_string(out, model.name);
    out += ",\"system_fingerprint\":";
    append_json_string(out, model.fingerprint);
    out += ",\"choices\":[";
  };
  head(head_, object);
  head(chunk_head_, chunk_object);
}

void ReplyWriter::append_shown(std::string& out, std::string_view text, int32_t id) const {
  if (!ids_as_tokens_) return append_json_string(out, text);
  out += "\"token_id:";
  append_json_int(out, id);
  out += '"';
}

bool ReplyWriter::begins(int choice) {
  const bool first = !started_[size_t(choice)];
  started_[size_t(choice)] = true;
  return first;
}

const std::vector<int32_t>* ReplyWriter::prompt_ids(const Completion& completion,
                                                    int choice) const {
  return return_token_ids_ ? &completion.prompt_ids(choice / n_) : nullptr;
}

void ReplyWriter::begin_event(std::string& out) const {
  out += "data: ";
  out += chunk_head_;
}

void ReplyWriter::end_event(std::string& out, const Completion& completion, int tokens,
                            const std::vector<int32_t>* prompt_ids) const {
  out += ']';
  if (prompt_ids != nullptr) {
    out += ",\"prompt_token_ids\":";
    append_prompt_ids(out, *prompt_ids);
  }
  if (include_usage_ || continuous_usage_) {
    out += ",\"usage\":";
    if (continuous_usage_) {
      Usage usage = completion.usage();
      usage.completion_tokens = tokens;
      append_usage(out, usage);
    } else {
      out += "null";
    }
  }
  out += "}\n\n";
}

void ReplyWriter::append_ending(std::string& out, const TextChunk& chunk,
                                const std::vector<int32_t>* prompt_ids, bool called) const {
  out += ",\"finish_reason\":";
  if (called && chunk.finish == FinishReason::stop)
    out += "\"tool_calls\"";
  else if (chunk.finish)
    append_json_string(out, name_of(*chunk.finish));
  else
    out += "null";
  out += ",\"stop_reason\":";
  append_stop_reason(out, chunk);
  if (prompt_ids != nullptr) {
    out += ",\"prompt_token_ids\":";
    append_prompt_ids(out, *prompt_ids);
  }
  if (return_token_ids_) {
    out += ",\"token_ids\":";
    append_output_ids(out, chunk);
  }
}

void ReplyWriter::append_usage_event(std::string& out, const Usage& usage) const {
  if (!include_usage_) return;
  begin_event(out);
  out += "],\"usage\":";
  append_usage(out, usage);
  out += "}\n\n";
}

void ReplyWriter::append_error_event(std::string& out, const Error& error) {
  out += "data: ";
  out += error_json(to_api_error(error));
  out += "\n\n";
}

void ReplyWriter::append_done(std::string& out) { out += "data: [DONE]\n\n"; }

void ReplyWriter::append_end(std::string& out, const Completion& completion) {
  append_usage_event(out, completion.usage());
  append_done(out);
}

void ReplyWriter::append_failure(std::string& out, const Error& error) {
  append_error_event(out, error);
  append_done(out);
}

std::string ReplyWriter::whole(std::span<const TextChunk> chunks,
                               const Completion& completion) const {
  std::string out = head_;
  bool first = true;
  for (const auto& [index, choice] : join_choices(chunks)) {
    if (!std::exchange(first, false)) out += ',';
    append_choice(out, choice, has_one_prompt() ? nullptr : prompt_ids(completion, index));
  }
  out += ']';
  if (const auto* ids = has_one_prompt() ? prompt_ids(completion, 0) : nullptr) {
    out += ",\"prompt_token_ids\":";
    append_prompt_ids(out, *ids);
  }
  out += ",\"usage\":";
  const Usage usage = completion.usage();
  append_usage(out, usage);
  out += '}';
  return out;
}

// Token text -> logprob: the largest ones, and the token itself where it is not among them. Of two
// tokens that are shown alike, the likelier stays.
void CompletionWriter::append_top(std::string& out, const ChunkToken& token) const {
  out += '{';
  std::vector<std::pair<std::string_view, int32_t>> seen;
  const auto add = [&](std::string_view text, int32_t id, float logprob) {
    const auto alike = [&](const auto& other) {
      return ids_as_tokens_ ? other.second == id : other.first == text;
    };
    if (std::ranges::any_of(seen, alike)) return;
    if (!seen.empty()) out += ',';
    seen.emplace_back(text, id);
    append_shown(out, text, id);
    out += ':';
    append_json_float(out, logprob);
  };
  for (const auto& [text, top] : token.top) add(text, top.id, top.logprob);
  add(token.text, token.id, *token.logprob);
  out += '}';
}

// {tokens, token_logprobs, top_logprobs, text_offset}, one entry a token; null for the first prompt
// token, which nothing predicts.
void CompletionWriter::append_logprobs(std::string& out,
                                       const std::vector<ChunkToken>& tokens) const {
  out += "{\"tokens\":";
  append_json_list(out, tokens, [&](const ChunkToken& t) { append_shown(out, t.text, t.id); });
  out += ",\"token_logprobs\":";
  append_json_list(out, tokens, [&](const ChunkToken& t) {
    if (t.logprob)
      append_json_float(out, *t.logprob);
    else
      out += "null";
  });
  out += ",\"top_logprobs\":";
  append_json_list(out, tokens, [&](const ChunkToken& t) {
    if (t.logprob)
      append_top(out, t);
    else
      out += "null";
  });
  out += ",\"text_offset\":";
  append_json_list(out, tokens, [&](const ChunkToken& t) { append_json_int(out, t.text_offset); });
  out += '}';
}

CompletionWriter::CompletionWriter(const ServedModel& model, const CompletionCall& call,
                                   int64_t created)
    : ReplyWriter(model, call, created, "text_completion", "text_completion") {}

void CompletionWriter::append_choice(std::string& out, const TextChunk& chunk,
                                     const std::vector<int32_t>* prompt_ids) const {
  out += "{\"index\":";
  append_json_int(out, chunk.choice);
  out += ",\"text\":";
  append_json_string(out, chunk.text);
  out += ",\"logprobs\":";
  if (logprobs_)
    append_logprobs(out, chunk.tokens);
  else
    out += "null";
  append_ending(out, chunk, prompt_ids);
  out += '}';
}

void CompletionWriter::append_event(std::string& out, const TextChunk& chunk,
                                    const Completion& completion) {
  const bool first = begins(chunk.choice);
  begin_event(out);
  append_choice(out, chunk, first ? prompt_ids(completion, chunk.choice) : nullptr);
  end_event(out, completion, completion.completion_tokens(chunk.choice));
}

}  // namespace kivi
