// SPDX-License-Identifier: Apache-2.0
// The OpenAI JSON of /v1/completions, /v1/chat/completions and their neighbors <-> the engine's
// types. Pure functions: no sockets, no clocks. What the fields mean: docs/api.md, section
// "Parameters".
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include "engine/serving/chat_prompt.h"
#include "engine/serving/completion.h"
#include "server/openai/answer_parser.h"
#include "server/openai/answer_writer.h"
#include "server/openai/field_recorder.h"

namespace kivi {

// What a request is judged by.
struct ApiRules {
  std::string model_name;
  std::vector<std::string> model_aliases;
  int vocab_size = 0;
  int max_logprobs = kDefaultMaxLogprobs;
  bool strict_params = false;  // unknown fields are errors
  std::optional<float> default_temperature, default_top_p;
  std::optional<int> default_top_k;
  ToolFormat tool_format = ToolFormat::none;  // how the model writes tool calls
  std::optional<ReasoningTags> reasoning;     // how it marks its reasoning
  std::string_view chat_template;             // Jinja; empty = none. Outlives the call.
  FieldRecorder* recorder = nullptr;          // notes the fields that are asked for
  std::stop_token stop;                       // requested: reading the request has become pointless
};
ApiRules api_rules(const ServedModel& model, bool strict_params, std::stop_token stop = {});

// A parsed POST /v1/completions.
struct CompletionCall {
  CompletionRequest request;  // `id` and `arrival` are the caller's to set
  bool include_usage = false;
  bool continuous_usage = false;
  bool return_token_ids = false;
  bool ids_as_tokens = false;  // return_tokens_as_token_ids: logprobs name tokens "token_id:7"
  AnswerSetup answer;          // of a chat: what the answer is made of
  std::string user;
  std::string request_id;                   // "" if the body has none
  std::vector<std::string> unknown_fields;  // accepted, but not understood
};

// Errors: invalid (with the field), not_found (model), unsupported (a parameter of docs/api.md that
// this build does not have).
Result<CompletionCall> parse_completion(std::string_view body, const ApiRules& rules);

// A parsed POST /v1/chat/completions. The completion's prompt is what the model's template makes of
// `chat`.
struct ChatCall {
  CompletionCall completion;  // no prompts yet; max_tokens: where none is given, all there is
  ChatInput chat;
};

// Errors: as parse_completion.
Result<ChatCall> parse_chat(std::string_view body, const ApiRules& rules);

// Makes the prompt's ids. Error invalid where the model has no chat template; errors that are the
// prompt's name `messages`.
Result<std::vector<int32_t>> chat_prompt_ids(const ServedModel& model, const ChatInput& chat);

struct TokenizeCall {
  std::string prompt;
  std::optional<ChatInput> chat;  // instead of a prompt
  bool add_special_tokens = true;
  bool return_token_strs = false;
  std::vector<std::string> unknown_fields;
};
Result<TokenizeCall> parse_tokenize(std::string_view body, const ApiRules& rules);

struct DetokenizeCall {
  std::vector<int32_t> tokens;  // within the vocabulary
  std::vector<std::string> unknown_fields;
};
Result<DetokenizeCall> parse_detokenize(std::string_view body, const ApiRules& rules);

// Writes the replies of one request. The parts that never change are made once; a chunk of a stream
// is appended to the caller's buffer without a DOM.
class ReplyWriter : public AnswerWriter {
 public:
  // The chunk with `choices: []` that ends a stream, where the request asked for it.
  void append_usage_event(std::string& out, const Usage& usage) const;
  static void append_error_event(std::string& out, const Error& error);
  static void append_done(std::string& out);

  void append_end(std::string& out, const Completion& completion) override;
  void append_failure(std::string& out, const Error& error) override;
  std::string whole(std::span<const TextChunk> chunks, const Completion& completion) const override;

 protected:
  // `object`, `chunk_object`: what the whole reply and an event call themselves.
  ReplyWriter(const ServedModel& model, const CompletionCall& call, int64_t created,
              const char* object, const char* chunk_object);

  // Returns true if the ids of a prompt stand beside the choices, false if in each choice.
  virtual bool has_one_prompt() const = 0;
  // prompt_ids: null where they are not to be written.
  virtual void append_choice(std::string& out, const TextChunk& chunk,
                             const std::vector<int32_t>* prompt_ids) const = 0;
  void begin_event(std::string& out) const;
  // `tokens`: completion_tokens of the choice so far.
  // `prompt_ids`: written beside the choices; null = none.
  void end_event(std::string& out, const Completion& completion, int tokens,
                 const std::vector<int32_t>* prompt_ids = nullptr) const;
  // "finish_reason" and "stop_reason", and, where they are asked for, the ids. `called`: the choice
  // has called a tool, which is why it has ended.
  void append_ending(std::string& out, const TextChunk& chunk,
                     const std::vector<int32_t>* prompt_ids, bool called = false) const;
  // True the first time for a choice.
  bool begins(int choice);
  const std::vector<int32_t>* prompt_ids(const Completion& completion, int choice) const;

  // Writes the token as logprobs name it: its text, or "token_id:7" if the request wants ids.
  void append_shown(std::string& out, std::string_view text, int32_t id) const;

  bool logprobs_ = false;
  bool return_token_ids_ = false;
  bool ids_as_tokens_ = false;

 private:
  // {"id":…,"object":…,"created":…,"model":…,"system_fingerprint":…,"choices":[
  std::string head_, chunk_head_;
  bool include_usage_ = false;
  bool continuous_usage_ = false;
  int n_ = 1;
  std::vector<bool> started_;  // by choice: an event has been written
};

class CompletionWriter final : public ReplyWriter {
 public:
  CompletionWriter(const ServedModel& model, const CompletionCall& call, int64_t created);
  void append_event(std::string& out, const TextChunk& chunk,
                    const Completion& completion) override;

 private:
  bool has_one_prompt() const override { return false; }
  void append_logprobs(std::string& out, const std::vector<ChunkToken>& tokens) const;
  void append_top(std::string& out, const ChunkToken& token) const;
  void append_choice(std::string& out, const TextChunk& chunk,
                     const std::vector<int32_t>* prompt_ids) const override;
};

class ChatWriter final : public ReplyWriter {
 public:
  ChatWriter(const ServedModel& model, const CompletionCall& call, int64_t created);
  // The first event of a choice has its role, and no text.
  void append_event(std::string& out, const TextChunk& chunk,
                    const Completion& completion) override;

 private:
  bool has_one_prompt() const override { return true; }
  void append_choice(std::string& out, const TextChunk& chunk,
                     const std::vector<int32_t>* prompt_ids) const override;
  void append_delta(std::string& out, const TextChunk& chunk, const ToolDelta* parsed,
                    bool called) const;
  // "tool_calls": [...], of a whole reply or of a delta.
  void append_calls(std::string& out, std::span<const ToolCallDelta> calls, bool delta) const;
  void append_logprobs(std::string& out, const TextChunk& chunk) const;
  void append_token(std::string& out, std::string_view text, int32_t id, float logprob) const;

  const Tokenizer& tokenizer_;
  size_t top_ = 0;  // top_logprobs
  const AnswerSetup answer_;
  std::vector<std::unique_ptr<ToolParser>> parsers_;  // by choice; null for a plain answer
};

}  // namespace kivi
