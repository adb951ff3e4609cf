// SPDX-License-Identifier: Apache-2.0
// ChoiceText makes the text of one choice of a completion. It takes token events and yields text,
// the tokens of that text, and the end. It knows nothing of engines and threads.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "engine/serving/completion.h"
#include "engine/text/detokenizer.h"
#include "engine/text/stop_matcher.h"

namespace kivi {

// Options that the choices of a completion share. Immutable.
struct ChoiceOptions {
  const Tokenizer* tokenizer = nullptr;  // outlives the choices
  bool skip_special_tokens = true;
  bool include_stop_str_in_output = false;
  bool echo = false;
  bool show_logprobs = false;         // of output tokens
  bool show_prompt_logprobs = false;  // of echoed prompt tokens
  int min_tokens = 0;  // stop strings are ignored in the text of this many first tokens
  std::vector<int32_t> stop_token_ids;
  std::shared_ptr<const StopStrings> stop;
};

// Returns a token as the front ends show it: the bytes themselves, or "bytes:\xe4\xbd" if they are
// not whole characters.
std::string display_text(std::string_view bytes);

// One owner at a time.
class ChoiceText {
 public:
  ChoiceText(std::shared_ptr<const ChoiceOptions> options,
             std::shared_ptr<const std::vector<int32_t>> prompt);

  // Appends to `chunk` the text and tokens that are final after `event`. Events after the end
  // (chunk.finish) change nothing. This class finds stop strings; the engine does not know of them.
  void read(TokenEvent event, TextChunk& chunk);

  bool ended() const { return ended_; }
  int completion_tokens() const { return completion_tokens_; }
  // Returns the mean of the output tokens' logprobs, or -infinity without tokens.
  double mean_logprob() const;

 private:
  // A token whose text is not complete, or is held back by the stop strings.
  struct Waiting {
    ChunkToken token;
    int64_t end;  // it may go out after this many bytes of output text
  };

  void echo_prompt(const std::vector<SampledToken>& scored, TextChunk& chunk);
  void read_token(TokenEvent& event, TextChunk& chunk);
  void end(TokenEvent& event, TextChunk& chunk);
  // Passes the detokenizer's text (fresh_) through the stop strings into the chunk.
  void pass_on(TextChunk& chunk);
  void end_by_stop_string(TextChunk& chunk);
  void release(TextChunk& chunk, bool all);
  ChunkToken make_token(int32_t id, bool at_start, int64_t offset) const;
  void add_logprobs(ChunkToken& token, float logprob, const std::vector<TokenLogprob>& top) const;

  std::shared_ptr<const ChoiceOptions> options_;
  std::shared_ptr<const std::vector<int32_t>> prompt_;
  Detokenizer detokenizer_;
  StopMatcher matcher_;
  std::deque<Waiting> waiting_;
  std::string fresh_;
  bool started_ = false;
  bool ended_ = false;
  int completion_tokens_ = 0;
  double logprob_sum_ = 0;
  // Characters of the echoed prompt. Characters and bytes of output text: made by the detokenizer,
  // and sent to the chunk.
  int64_t prompt_chars_ = 0;
  int64_t made_chars_ = 0, made_bytes_ = 0;
  int64_t sent_chars_ = 0, sent_bytes_ = 0;
};

}  // namespace kivi
