// The OpenAI JSON of /v1/completions and its neighbours <-> the engine's types. Pure functions: no
// sockets, no clocks. What the fields mean: api.md, section 1.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/completion.h"

namespace kivi {

// What a request is judged by.
struct ApiRules {
  std::string model_name;
  int vocab_size = 0;
  int max_logprobs = kDefaultMaxLogprobs;
  bool strict_params = false;  // unknown fields are errors
  std::optional<float> default_temperature, default_top_p;
  std::optional<int> default_top_k;
};
ApiRules api_rules(const ServedModel& model, bool strict_params);

// A parsed POST /v1/completions.
struct CompletionCall {
  CompletionRequest request;  // `id` and `arrival` are the caller's to set
  bool include_usage = false;
  bool continuous_usage = false;
  bool return_token_ids = false;
  std::string user;
  std::string request_id;                   // "" if the body has none
  std::vector<std::string> unknown_fields;  // accepted, but not understood
};

// Errors: invalid (with the field), not_found (model), unsupported (a parameter of api.md that this
// build does not have).
Result<CompletionCall> parse_completion(std::string_view body, const ApiRules& rules);

struct TokenizeCall {
  std::string prompt;
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

// Writes the replies of one completion. The parts that never change are made once; a chunk of a
// stream is appended to the caller's buffer without a DOM.
class CompletionWriter {
 public:
  CompletionWriter(const ServedModel& model, const CompletionCall& call, int64_t created);

  // One SSE event for `chunk` of `completion`.
  void append_event(std::string& out, const TextChunk& chunk, const Completion& completion);
  // The chunk with `choices: []` that ends a stream, where the request asked for it.
  void append_usage_event(std::string& out, const Usage& usage) const;
  static void append_error_event(std::string& out, const Error& error);
  static void append_done(std::string& out);

  // The reply of a request that does not stream. `chunks`: all of them, in any order.
  std::string whole(std::span<const TextChunk> chunks, const Completion& completion) const;

 private:
  // prompt_ids: null where they are not to be written.
  void append_choice(std::string& out, const TextChunk& chunk,
                     const std::vector<int32_t>* prompt_ids) const;

  std::string head_;  // {"id":…,"object":…,"created":…,"model":…,"system_fingerprint":…,"choices":[
  bool logprobs_ = false;
  bool include_usage_ = false;
  bool continuous_usage_ = false;
  bool return_token_ids_ = false;
  int n_ = 1;
  std::vector<bool> started_;  // by choice: an event has been written
};

}  // namespace kivi
