// SPDX-License-Identifier: Apache-2.0
#include "study/perplexity.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace kivi {

namespace {

constexpr std::string_view kStoryMark = "<|story|>";
constexpr int64_t kStoryCharactersMin = 201;

std::string_view stripped(std::string_view text) {
  constexpr std::string_view kSpace = " \t\n\v\f\r";
  const size_t begin = text.find_first_not_of(kSpace);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kSpace) - begin + 1);
}

// UTF-8: every byte but continuation bytes begins a character.
int64_t characters(std::string_view text) {
  return std::ranges::count_if(text, [](char c) { return (uint8_t(c) & 0xc0) != 0x80; });
}

}  // namespace

std::vector<std::string> stories_of(const std::string& text) {
  std::vector<std::string> stories;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(kStoryMark, begin), text.size());
    const std::string_view story = stripped(std::string_view(text).substr(begin, end - begin));
    if (characters(story) >= kStoryCharactersMin) stories.emplace_back(story);
    begin = end + kStoryMark.size();
  }
  return stories;
}

std::vector<int32_t> ids_of(const std::vector<std::string>& stories, const Tokenizer& tokenizer) {
  std::vector<int32_t> ids;
  for (const std::string& story : stories) {
    if (tokenizer.bos_id()) ids.push_back(*tokenizer.bos_id());
    std::ranges::copy(tokenizer.encode(story, /*add_special_tokens=*/false),
                      std::back_inserter(ids));
    if (tokenizer.eos_id()) ids.push_back(*tokenizer.eos_id());
  }
  return ids;
}

std::vector<std::vector<int32_t>> windows_of(const std::vector<std::string>& stories,
                                             const Tokenizer& tokenizer, int window,
                                             int windows_max) {
  const std::vector<int32_t> ids = ids_of(stories, tokenizer);
  size_t count = ids.size() / size_t(window);
  if (windows_max > 0) count = std::min(count, size_t(windows_max));
  std::vector<std::vector<int32_t>> windows;
  for (size_t i = 0; i < count; ++i) {
    const auto begin = ids.begin() + std::ptrdiff_t(i) * window;
    windows.emplace_back(begin, begin + window);
  }
  return windows;
}

Result<Perplexity> measure_perplexity(Engine& engine,
                                      const std::vector<std::vector<int32_t>>& windows,
                                      const ScoreProgress& progress) {
  KIVI_ASSIGN_OR_RETURN(const auto logprobs, score_prompts(engine, windows, progress));
  Perplexity result;
  for (const std::vector<float>& window : logprobs) {
    for (const float logprob : window) {
      result.token_nll.push_back(-logprob);
      result.nll -= double(logprob);
    }
  }
  result.tokens = int64_t(result.token_nll.size());
  if (result.tokens > 0) result.nll /= double(result.tokens);
  result.perplexity = std::exp(result.nll);
  return result;
}

double mean_change(const Perplexity& a, const Perplexity& b) {
  KIVI_VERIFY(a.token_nll.size() == b.token_nll.size());
  double sum = 0;
  for (size_t i = 0; i < a.token_nll.size(); ++i)
    sum += std::abs(double(a.token_nll[i]) - double(b.token_nll[i]));
  return sum / double(std::max<size_t>(a.token_nll.size(), 1));
}

std::vector<StridedWindow> strided_windows(int64_t ids, int window, int stride, int windows_max) {
  KIVI_VERIFY(stride > 0 && stride <= window);
  std::vector<StridedWindow> windows;
  for (int64_t begin = 0, end = 0; end < ids; begin += stride) {
    if (windows_max > 0 && int(windows.size()) == windows_max) break;
    const int64_t end_before = end;
    end = std::min(begin + window, ids);
    windows.push_back({begin, end, end - end_before});
  }
  return windows;
}

Perplexity strided_perplexity(const std::vector<StridedWindow>& windows,
                              const std::vector<std::vector<float>>& logprobs) {
  KIVI_VERIFY(windows.size() == logprobs.size());
  Perplexity result;
  for (size_t i = 0; i < windows.size(); ++i) {
    const std::vector<float>& all = logprobs[i];
    const int64_t predicted = std::min<int64_t>(windows[i].targets, int64_t(all.size()));
    const int64_t weight = windows[i].targets - 1;
    double sum = 0;
    for (auto logprob = all.end() - predicted; logprob != all.end(); ++logprob) {
      result.token_nll.push_back(-*logprob);
      sum -= double(*logprob);
    }
    if (weight > 0) result.nll += sum / double(predicted) * double(weight);
    result.tokens += weight;
  }
  if (result.tokens > 0) result.nll /= double(result.tokens);
  result.perplexity = std::exp(result.nll);
  return result;
}

}  // namespace kivi
