// SPDX-License-Identifier: Apache-2.0
#include "engine/serving/choice_text.h"

#include <algorithm>
#include <limits>

#include "base/utf8.h"
#include "base/verify.h"

namespace kivi {
namespace {

// Says whether the output continues a text. It does not if the prompt has special tokens only.
TextStart text_start(const ChoiceOptions& options, const std::vector<int32_t>& prompt) {
  for (int32_t id : prompt) {
    if (!options.tokenizer->token_bytes(id, options.skip_special_tokens).empty()) {
      return TextStart::continued;
    }
  }
  return TextStart::fresh;
}

}  // namespace

std::string display_text(std::string_view bytes) {
  if (is_valid_utf8(bytes)) return std::string(bytes);
  constexpr char kHex[] = "0123456789abcdef";
  std::string text = "bytes:";
  for (unsigned char byte : bytes) {
    text += "\\x";
    text += kHex[byte >> 4];
    text += kHex[byte & 15];
  }
  return text;
}

ChoiceText::ChoiceText(std::shared_ptr<const ChoiceOptions> options,
                       std::shared_ptr<const std::vector<int32_t>> prompt)
    : options_(std::move(options)),
      prompt_(std::move(prompt)),
      detokenizer_(*options_->tokenizer, options_->skip_special_tokens,
                   text_start(*options_, *prompt_)),
      matcher_(options_->stop, options_->include_stop_str_in_output) {}

double ChoiceText::mean_logprob() const {
  if (completion_tokens_ == 0) return -std::numeric_limits<double>::infinity();
  return logprob_sum_ / completion_tokens_;
}

void ChoiceText::read(TokenEvent event, TextChunk& chunk) {
  if (ended_) return;
  if (!started_ && event.finish != FinishReason::error) {
    started_ = true;
    if (options_->echo) echo_prompt(event.prompt_logprobs, chunk);
  }
  if (event.id >= 0) read_token(event, chunk);
  if (event.finish && !ended_) end(event, chunk);
}

// The prompt's text stands by itself: were its last bytes no whole character, it ends in U+FFFD, so
// that the text with echo is always the prompt's text and then the text without echo.
void ChoiceText::echo_prompt(const std::vector<SampledToken>& scored, TextChunk& chunk) {
  Detokenizer detokenizer(*options_->tokenizer, options_->skip_special_tokens);
  std::string text;
  chunk.tokens.reserve(chunk.tokens.size() + prompt_->size());
  for (size_t i = 0; i < prompt_->size(); ++i) {
    const int32_t id = (*prompt_)[i];
    ChunkToken token = make_token(id, detokenizer.at_start(), prompt_chars_);
    if (options_->show_prompt_logprobs && i > 0 && i - 1 < scored.size()) {
      add_logprobs(token, scored[i - 1].logprob, scored[i - 1].top);
    }
    chunk.tokens.push_back(std::move(token));
    text.clear();
    detokenizer.push(id, text);
    prompt_chars_ += utf8_length(text);
    chunk.text += text;
  }
  text.clear();
  detokenizer.flush(text);
  prompt_chars_ += utf8_length(text);
  chunk.text += text;
  chunk.prompt_tokens = int(prompt_->size());
}

void ChoiceText::read_token(TokenEvent& event, TextChunk& chunk) {
  ++completion_tokens_;
  logprob_sum_ += event.logprob;
  ChunkToken token = make_token(event.id, detokenizer_.at_start(), prompt_chars_ + made_chars_);
  if (options_->show_logprobs) add_logprobs(token, event.logprob, event.top);

  // The token that ended the text (EOS, a stop id) is no part of it, like a stop string.
  fresh_.clear();
  if (!event.stopped_by_token || options_->include_stop_str_in_output) {
    detokenizer_.push(event.id, fresh_);
  }
  const int64_t end = made_bytes_ + int64_t(fresh_.size()) + (detokenizer_.holding() ? 1 : 0);
  waiting_.push_back({std::move(token), end});
  pass_on(chunk);
  if (!ended_) release(chunk, /*all=*/false);
}

void ChoiceText::pass_on(TextChunk& chunk) {
  made_bytes_ += int64_t(fresh_.size());
  made_chars_ += utf8_length(fresh_);
  const size_t before = chunk.text.size();
  bool matched = false;
  if (completion_tokens_ <= options_->min_tokens) {
    chunk.text += fresh_;
  } else {
    matched = matcher_.push(fresh_, chunk.text);
  }
  sent_bytes_ += int64_t(chunk.text.size() - before);
  sent_chars_ += utf8_length(std::string_view(chunk.text).substr(before));
  if (matched) end_by_stop_string(chunk);
}

void ChoiceText::end_by_stop_string(TextChunk& chunk) {
  ended_ = true;
  chunk.finish = FinishReason::stop;
  chunk.stop_reason = matcher_.matched_string();
  for (Waiting& waiting : waiting_) {
    waiting.token.text_offset = std::min(waiting.token.text_offset, prompt_chars_ + sent_chars_);
  }
  release(chunk, /*all=*/true);
}

void ChoiceText::end(TokenEvent& event, TextChunk& chunk) {
  fresh_.clear();
  detokenizer_.flush(fresh_);
  pass_on(chunk);
  if (ended_) return;  // the last character completed a stop string
  ended_ = true;
  matcher_.flush(chunk.text);
  release(chunk, /*all=*/true);
  chunk.embedding = std::move(event.hidden);
  chunk.finish = event.finish;
  chunk.error = std::move(event.error);
  const auto& ids = options_->stop_token_ids;
  if (event.stopped_by_token && std::find(ids.begin(), ids.end(), event.id) != ids.end()) {
    chunk.stop_reason = event.id;
  }
}

void ChoiceText::release(TextChunk& chunk, bool all) {
  while (!waiting_.empty() && (all || waiting_.front().end <= sent_bytes_)) {
    chunk.tokens.push_back(std::move(waiting_.front().token));
    waiting_.pop_front();
  }
}

ChunkToken ChoiceText::make_token(int32_t id, bool at_start, int64_t offset) const {
  std::string_view bytes = options_->tokenizer->token_bytes(id, /*skip_special=*/false);
  if (at_start && bytes.starts_with(' ') && options_->tokenizer->strips_leading_space()) {
    bytes.remove_prefix(1);  // as the detokenizer does
  }
  ChunkToken token;
  token.id = id;
  token.text = display_text(bytes);
  token.text_offset = offset;
  return token;
}

void ChoiceText::add_logprobs(ChunkToken& token, float logprob,
                              const std::vector<TokenLogprob>& top) const {
  token.logprob = logprob;
  token.top.reserve(top.size() + 1);
  bool listed = false;
  for (const TokenLogprob& entry : top) {
    if (entry.id == token.id) {
      listed = true;
      token.logprob = entry.logprob;  // the same float in both places
      token.top.emplace_back(token.text, entry);
    } else {
      const auto& bytes = options_->tokenizer->token_bytes(entry.id, /*skip_special=*/false);
      token.top.emplace_back(display_text(bytes), entry);
    }
  }
  if (!listed) token.top.emplace_back(token.text, TokenLogprob{token.id, logprob});
}

}  // namespace kivi
