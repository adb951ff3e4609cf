// Completion: one API request from text to text chunks; all that a front end needs. It tokenizes,
// submits one engine request for each (prompt, choice), detokenizes, finds stop strings, and keeps
// count. HTTP and gRPC are thin over it.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "engine/engine.h"
#include "engine/request.h"
#include "engine/text/tokenizer.h"

namespace kivi {

class ChatPrompt;  // chat_prompt.h

// A loaded model as the front ends see it. Everything outlives them.
struct ServedModel {
  std::string name;  // --served-model-name
  std::string path;
  std::string fingerprint;  // "fp_" + hash of build, model and KV format
  int64_t created = 0;      // unix seconds
  int max_model_len = 0;
  KvFormat kv_format;
  const Tokenizer* tokenizer = nullptr;
  Engine* engine = nullptr;
  const ChatPrompt* chat = nullptr;  // null: the model has no chat template
  // Of generation_config.json, where present: the defaults of a request.
  std::optional<float> default_temperature, default_top_p;
  std::optional<int> default_top_k;
};

struct CompletionRequest {
  std::string id;  // "cmpl-..."
  // Each prompt is text or ids. Ids never get a BOS added.
  std::vector<std::variant<std::string, std::vector<int32_t>>> prompts;
  SamplingParams sampling;
  int n = 1;
  int best_of = 0;  // >= n; the n with the largest mean logprob are returned; > n not with
                    // streaming; 0: as n
  std::vector<std::string> stop;
  bool include_stop_str_in_output = false;
  bool echo = false;
  bool skip_special_tokens = true;
  bool add_special_tokens = true;
  int truncate_prompt_tokens = -1;  // > 0: keep the last n
  int priority = 0;
  std::string tenant;      // for fair scheduling; "" is a tenant too
  bool streaming = false;  // deliver chunks as they come; else one chunk a choice at its end
  std::optional<Clock::time_point> deadline;
  Clock::time_point arrival =
      Clock::now();  // the socket's accept (HTTP) or the call's start (gRPC)
};

// One token of a chunk, with where its text begins in the choice's whole text.
struct ChunkToken {
  int32_t id = 0;
  // For display, always valid UTF-8: the token's bytes; "bytes:\xe4\xbd" where they are not whole
  // characters, as OpenAI writes them; the spelling of a special token, also where it is skipped.
  std::string text;
  std::optional<float> logprob;  // none: not asked for, or the first prompt token
  // (token text, id and logprob): the `logprobs` likeliest tokens, the likeliest first, then the
  // token itself where it is not among them.
  std::vector<std::pair<std::string, TokenLogprob>> top;
  // Characters (code points) of the choice's text before it, as OpenAI and vLLM count. Tokens that
  // share a character share its offset; tokens inside a stop string that was cut off have the
  // text's length.
  int64_t text_offset = 0;
};

// A piece of one choice. `text` is whole UTF-8; concatenated it is the choice's text.
struct TextChunk {
  int choice = 0;  // prompt index * n + choice of it
  std::string text;
  // Tokens whose text is complete with this chunk. The chunks of a choice together hold the
  // prompt's tokens (echo), then every token that completion_tokens counts.
  std::vector<ChunkToken> tokens;
  int prompt_tokens = 0;  // the first so many of `tokens` are the echoed prompt's
  std::optional<FinishReason> finish;
  std::variant<std::monostate, int32_t, std::string> stop_reason;  // a stop id or stop string
  std::optional<Error> error;                                      // finish error
};

struct Usage {
  int prompt_tokens = 0;      // each prompt counted once
  int completion_tokens = 0;  // of all choices that were computed
  int cached_tokens = 0;
};

class Completion {
 public:
  // Tokenizes and submits, on the reader's executor. All or nothing; errors name the field.
  // `notify` is called on any thread when poll() has something; it must only post to the reader's
  // executor, and must own what it touches: a last call may come while the completion is destroyed.
  static Result<std::shared_ptr<Completion>> start(const ServedModel& model,
                                                   CompletionRequest request,
                                                   std::function<void()> notify);
  virtual ~Completion() = default;  // cancels what is unfinished

  // Reader's executor. Appends what is ready; returns true when all choices have ended, and the
  // engine holds nothing for them any more (a stop string is found here: its chunk comes at once,
  // the engine's answer a step later).
  virtual bool poll(std::vector<TextChunk>& out) = 0;
  // Any thread: the client is gone.
  virtual void cancel() = 0;

  // Reader's executor. Complete once poll returned true; before, what has been counted so far.
  virtual Usage usage() const = 0;
  // Tokens of choice so far (continuous_usage_stats).
  virtual int completion_tokens(int choice) const = 0;
  // The ids of a prompt as it was submitted (tokenized, with BOS, truncated). Never changes.
  virtual const std::vector<int32_t>& prompt_ids(int prompt) const = 0;
  // One entry a finished engine request (n, best_of and prompts make several), for metrics.
  virtual const std::vector<RequestTimes>& times() const = 0;
};

}  // namespace kivi
