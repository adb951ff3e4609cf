// SPDX-License-Identifier: Apache-2.0
// Completion is one API request, from text to chunks of text. It tokenizes, submits one engine
// request for each (prompt, choice), detokenizes, finds stop strings, and counts tokens. HTTP and
// gRPC are thin layers over it.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "engine/engine.h"
#include "engine/request.h"
#include "engine/serving/structured_output.h"
#include "engine/text/tokenizer.h"

namespace kivi {

class ChatPrompt;  // chat_prompt.h

// A loaded model as the front ends see it. What it points to must outlive the front ends.
struct ServedModel {
  std::string name;                  // in replies and metrics: the first --served-model-name
  std::vector<std::string> aliases;  // further names by which requests may ask for the model
  std::string path;
  std::string fingerprint;  // "fp_" + hash of build, model and KV format
  int64_t created = 0;      // unix seconds
  int max_model_len = 0;
  int hidden = 0;  // channels of a hidden state; 0 = embeddings are refused
  KvFormat kv_format;
  KvLayerBits kv_layer_bits;  // empty: all layers have the bits of kv_format
  const Tokenizer* tokenizer = nullptr;
  Engine* engine = nullptr;
  const ChatPrompt* chat = nullptr;        // null = the model has no chat template
  StructuredOutput* structured = nullptr;  // null = structured output is refused
  // The defaults of a request, from generation_config.json if it has them.
  std::optional<float> default_temperature, default_top_p;
  std::optional<int> default_top_k;
};

// Returns the name of the model's cache format: "kivi3.5", or "kivi4.5+layers" where the bits of
// its layers differ.
std::string kv_format_name(const ServedModel& model);

// Returns true if `name` is the model's name or one of its aliases.
bool has_name(const ServedModel& model, std::string_view name);

struct CompletionRequest {
  std::string id;  // "cmpl-..."
  // Each prompt is text or ids. Ids never get a BOS added.
  std::vector<std::variant<std::string, std::vector<int32_t>>> prompts;
  SamplingParams sampling;
  int n = 1;
  // Compute this many choices and return the n with the largest mean logprob. 0 = n. Larger than n
  // only without streaming.
  int best_of = 0;
  // Not none: instead of text, each choice has an embedding, and max_tokens is 0.
  Pooling pooling = Pooling::none;
  bool normalize = true;                   // embeddings have length 1
  std::optional<OutputFormat> format;      // what the output must be
  std::vector<int32_t> allowed_token_ids;  // sample no others; empty = all. Not with `format`.
  std::vector<std::string> bad_words;      // do not write these
  std::vector<std::string> stop;
  bool include_stop_str_in_output = false;
  bool echo = false;
  bool skip_special_tokens = true;
  bool add_special_tokens = true;
  int truncate_prompt_tokens = -1;  // > 0: keep this many tokens; -1 = all
  enum class Side { begin, end } truncation_side = Side::begin;  // where they are cut off
  int priority = 0;
  bool cache = true;       // false: neither reuse nor keep tokens (prefix cache)
  std::string cache_salt;  // only requests of the same salt share tokens
  std::string tenant;      // for fair scheduling; "" is a tenant too
  bool streaming = false;  // deliver chunks as they come; else one chunk a choice at its end
  std::optional<Clock::time_point> deadline;
  std::stop_token stop_token;  // requested: tokenizing the prompts has become pointless
  Clock::time_point arrival =
      Clock::now();  // the socket's accept (HTTP) or the call's start (gRPC)
};

// One token of a chunk, with the place of its text in the choice's whole text.
struct ChunkToken {
  int32_t id = 0;
  // Text for display, always valid UTF-8: the token's bytes, or "bytes:\xe4\xbd" if they are not
  // whole characters, as OpenAI writes them. A special token has its spelling, even if the text
  // skips it.
  std::string text;
  std::optional<float> logprob;  // none = not asked for, or the first prompt token
  // (text, id and logprob) of the `logprobs` likeliest tokens, the likeliest first. The token
  // itself follows if it is not among them.
  std::vector<std::pair<std::string, TokenLogprob>> top;
  // The number of characters (code points) of the choice's text before this token, as OpenAI and
  // vLLM count. Tokens that share a character have the same offset. Tokens inside a stop string
  // that was cut off have the text's length.
  int64_t text_offset = 0;
};

// A piece of one choice. `text` is whole UTF-8. The joined pieces are the choice's text.
struct TextChunk {
  int choice = 0;  // prompt index * n + choice of it
  std::string text;
  // Tokens whose text is complete with this chunk. Together, the chunks of a choice hold the
  // prompt's tokens (with echo) and then every token that completion_tokens counts.
  std::vector<ChunkToken> tokens;
  int prompt_tokens = 0;         // this many first `tokens` belong to the echoed prompt
  std::vector<float> embedding;  // [hidden], with `finish`, if the request pools
  std::optional<FinishReason> finish;
  std::variant<std::monostate, int32_t, std::string> stop_reason;  // a stop id or stop string
  std::optional<Error> error;                                      // finish error
};

struct Usage {
  int prompt_tokens = 0;      // each prompt counted once
  int completion_tokens = 0;  // of all computed choices
  int cached_tokens = 0;      // prompt tokens that the first choice of each prompt reused
};

class Completion {
 public:
  // Tokenizes and submits, on the reader's executor. All or nothing; errors name the field. A
  // request that no empty server could take is invalid: more choices than fit into the queue and
  // the running batch, a text longer than max_tokenize_bytes, a reply larger than max_reply_bytes.
  // `notify` is called on any thread when poll() has something; it must only post to the reader's
  // executor, and must own what it touches: a last call may come while the completion is destroyed.
  static Result<std::shared_ptr<Completion>> start(const ServedModel& model,
                                                   CompletionRequest request,
                                                   std::function<void()> notify);
  virtual ~Completion() = default;  // cancels what is unfinished

  // Appends the chunks that are ready. Returns true when all choices have ended and the engine
  // holds nothing for them any more. (After a stop string, its chunk comes at once and the engine's
  // answer a step later.) Reader's executor.
  virtual bool poll(std::vector<TextChunk>& out) = 0;
  // Ends the request because the client is gone. Any thread.
  virtual void cancel() = 0;

  // Returns the counts so far. They are complete after poll has returned true. Reader's executor.
  virtual Usage usage() const = 0;
  // Returns the tokens of a choice so far (continuous_usage_stats).
  virtual int completion_tokens(int choice) const = 0;
  // Returns the ids of a prompt as submitted (tokenized, with BOS, truncated). They never change.
  virtual const std::vector<int32_t>& prompt_ids(int prompt) const = 0;
  // Returns one entry for each finished engine request, for metrics. n, best_of and several prompts
  // make several.
  virtual const std::vector<RequestTimes>& times() const = 0;
};

// Returns `invalid`, naming `field`, if a text of this many bytes exceeds max_tokenize_bytes.
Status check_text_bytes(size_t bytes, const ServedModel& model, const char* field);

}  // namespace kivi
