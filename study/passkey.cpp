// SPDX-License-Identifier: Apache-2.0
#include "study/passkey.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <random>

namespace kivi {

namespace {

constexpr int kAnswerTokens = 12;  // five digits and what may stand before them
constexpr std::string_view kQuestion = " What is the pass key? The pass key is";

std::string key_sentence(const std::string& key) {
  return fmt::format("The pass key is {}. Remember it. {} is the pass key.", key, key);
}

// Different numbers of five digits; the first is the key.
std::vector<std::string> numbers(int count, int length, double depth, int trial) {
  std::seed_seq seed{length, int(depth * 1000), trial};
  std::mt19937 random(seed);
  std::vector<std::string> result;
  while (int(result.size()) < count) {
    // Not uniform_int_distribution: its results are the library's own.
    const std::string number = std::to_string(10000 + random() % 90000);
    if (std::ranges::find(result, number) == result.end()) result.push_back(number);
  }
  return result;
}

int tokens_of(const Tokenizer& tokenizer, const std::string& text) {
  return int(tokenizer.encode(text, false).size()) + (tokenizer.bos_id() ? 1 : 0);
}

std::string assemble(const std::vector<std::string>& filler, size_t first, size_t count,
                     size_t before, const std::string& sentence) {
  std::string text;
  for (size_t i = 0; i <= count; ++i) {
    if (i == before) text += sentence + " ";
    if (i < count) text += filler[(first + i) % filler.size()] + " ";
  }
  text.pop_back();
  return text + std::string(kQuestion);
}

}  // namespace

std::vector<std::string> sentences_of(const std::string& text) {
  std::vector<std::string> sentences;
  std::string sentence;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool space = std::isspace(uint8_t(text[i])) != 0;
    if (!space) sentence += text[i];
    if (space && !sentence.empty() && sentence.back() != ' ') sentence += ' ';
    const bool ends = text[i] == '.' || text[i] == '!' || text[i] == '?';
    if (ends && (i + 1 == text.size() || std::isspace(uint8_t(text[i + 1])) != 0))
      sentences.push_back(std::exchange(sentence, {}));
  }
  return sentences;
}

Result<PasskeyPrompt> passkey_prompt(const std::vector<std::string>& filler,
                                     const Tokenizer& tokenizer, int length, double depth,
                                     const PasskeyOptions& options, int trial) {
  if (filler.empty())
    return Error{ErrorCode::invalid, "the text has no sentence to hide a pass key in", "text"};
  const std::vector<std::string> keys = numbers(1 + options.distractors, length, depth, trial);
  const std::string sentence = key_sentence(keys[0]);
  const int fixed = tokens_of(tokenizer, assemble(filler, 0, 0, 0, sentence));
  if (fixed > length)
    return Error{
        ErrorCode::invalid,
        fmt::format("--passkey {}: must be at least {} tokens, for the key and the question",
                    length, fixed),
        "passkey"};
  const size_t first = size_t(trial) * 7 % filler.size();
  // What a sentence begins with inside a text, where the tokenizer does not see to it.
  const std::string seam = tokenizer.strips_leading_space() ? "" : " ";
  std::vector<int> ends = {0};  // filler tokens after 0, 1, ... sentences
  while (fixed + ends.back() <= length) {
    const std::string& next = filler[(first + ends.size() - 1) % filler.size()];
    ends.push_back(ends.back() + std::max(1, int(tokenizer.encode(seam + next, false).size())));
  }
  PasskeyPrompt prompt;
  // Tokens of parts are not those of the whole: take sentences away until it fits.
  for (size_t count = ends.size() - 1;; --count) {
    const auto before = std::lower_bound(ends.begin(), ends.begin() + std::ptrdiff_t(count),
                                         depth * double(ends[count])) -
                        ends.begin();
    prompt.text = assemble(filler, first, count, size_t(before), sentence);
    prompt.tokens = tokens_of(tokenizer, prompt.text);
    if (prompt.tokens <= length || count == 0) break;
  }
  prompt.key = keys[0];
  prompt.distractors.assign(keys.begin() + 1, keys.end());
  return prompt;
}

namespace {

// The greedy answers to prompts.
Result<std::vector<std::string>> answers(Engine& engine, const Tokenizer& tokenizer,
                                         const std::vector<PasskeyPrompt>& prompts) {
  std::vector<std::shared_ptr<TokenStream>> streams;
  for (const PasskeyPrompt& prompt : prompts) {
    Request request;
    if (tokenizer.bos_id()) request.prompt.push_back(*tokenizer.bos_id());
    for (const int32_t id : tokenizer.encode(prompt.text, false)) request.prompt.push_back(id);
    request.sampling.temperature = 0;
    request.sampling.max_tokens = kAnswerTokens;
    KIVI_ASSIGN_OR_RETURN(auto stream, engine.submit(std::move(request), [] {}));
    streams.push_back(std::move(stream));
  }
  engine.run_until_idle();
  std::vector<std::string> texts;
  for (const auto& stream : streams) {
    std::vector<TokenEvent> events;
    const bool drained = stream->drain(events);
    KIVI_VERIFY(drained);
    std::vector<int32_t> ids;
    for (const TokenEvent& event : events) {
      if (event.error) return *event.error;
      if (event.id >= 0) ids.push_back(event.id);
    }
    texts.push_back(tokenizer.decode(ids, /*skip_special=*/true));
  }
  return texts;
}

}  // namespace

Result<PasskeySet> passkey_set(const std::vector<std::string>& filler, const Tokenizer& tokenizer,
                               const PasskeyOptions& options, int tokens_max) {
  PasskeySet set;
  for (const int length : options.lengths) {
    for (const double depth : options.depths) {
      set.scores.push_back({.length = length, .depth = depth, .trials = options.trials});
      for (int trial = 0; trial < options.trials; ++trial) {
        KIVI_ASSIGN_OR_RETURN(PasskeyPrompt prompt,
                              passkey_prompt(filler, tokenizer, length, depth, options, trial));
        std::vector<std::string> candidates = {prompt.key};
        std::ranges::copy(prompt.distractors, std::back_inserter(candidates));
        for (const std::string& key : candidates) {
          KIVI_ASSIGN_OR_RETURN(Continuation c, continuation_of(tokenizer, prompt.text, " " + key));
          const int tokens = options.distractors > 0 ? int(c.prompt.size()) : prompt.tokens + 1;
          if (tokens > tokens_max)
            return Error{ErrorCode::context_length,
                         fmt::format("--passkey {}: a prompt and its answer have {} tokens, must "
                                     "have at most {} (max_model_len)",
                                     length, tokens, tokens_max),
                         "passkey"};
          set.keys.push_back(std::move(c));
        }
        set.prompts.push_back(std::move(prompt));
      }
    }
  }
  return set;
}

Result<std::vector<PasskeyScore>> measure_passkey(Engine& engine, const Tokenizer& tokenizer,
                                                  const PasskeySet& set,
                                                  const PasskeyOptions& options,
                                                  const ScoreProgress& progress) {
  const std::vector<PasskeyPrompt>& prompts = set.prompts;
  std::vector<PasskeyScore> scores = set.scores;
  KIVI_ASSIGN_OR_RETURN(const auto texts, answers(engine, tokenizer, prompts));
  const bool ranked = options.distractors > 0;  // else there is nothing to score
  std::vector<double> sums;
  if (ranked) {
    KIVI_ASSIGN_OR_RETURN(sums, score_continuations(engine, set.keys, progress));
  }
  const size_t candidates = size_t(options.distractors) + 1;
  for (size_t i = 0; i < prompts.size(); ++i) {
    PasskeyScore& score = scores[i / size_t(options.trials)];
    score.found += texts[i].find(prompts[i].key) != std::string::npos ? 1 : 0;
    if (!ranked) continue;
    const auto own = sums.begin() + std::ptrdiff_t(i * candidates);
    const auto rank = 1 + std::count_if(own + 1, own + std::ptrdiff_t(candidates),
                                        [&](double other) { return other >= *own; });
    score.likeliest += rank == 1 ? 1 : 0;
    score.rank_mean += double(rank) / options.trials;
  }
  return scores;
}

}  // namespace kivi
