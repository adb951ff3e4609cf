// SPDX-License-Identifier: Apache-2.0
#include "study/score.h"

#include <fmt/format.h>

#include <numeric>

namespace kivi {

Result<std::vector<std::vector<float>>> score_prompts(
    Engine& engine, const std::vector<std::vector<int32_t>>& prompts,
    const ScoreProgress& progress) {
  std::vector<std::shared_ptr<TokenStream>> streams;
  for (size_t i = 0; i < prompts.size(); ++i) {
    Request request;
    request.id = std::to_string(i);
    request.prompt = prompts[i];
    request.sampling.max_tokens = 0;
    request.sampling.prompt_logprobs = 0;
    KIVI_ASSIGN_OR_RETURN(auto stream, engine.submit(std::move(request), [] {}));
    streams.push_back(std::move(stream));
  }
  while (engine.step())
    if (progress) progress(int64_t(engine.stats().step_tokens));

  std::vector<std::vector<float>> result(prompts.size());
  for (size_t i = 0; i < streams.size(); ++i) {
    std::vector<TokenEvent> events;
    const bool ended = streams[i]->drain(events);
    KIVI_VERIFY(ended);
    for (const TokenEvent& event : events) {
      if (event.error) return *event.error;
      for (const SampledToken& token : event.prompt_logprobs) result[i].push_back(token.logprob);
    }
    KIVI_VERIFY(result[i].size() + 1 == prompts[i].size());
  }
  return result;
}

Result<Continuation> continuation_of(const Tokenizer& tokenizer, std::string context,
                                     std::string_view continuation) {
  const size_t end = context.find_last_not_of(" \t\n\r") + 1;  // 0 where all is white space
  const std::string whole = context + std::string(continuation);
  context.resize(end);
  Continuation result;
  if (tokenizer.bos_id()) result.prompt.push_back(*tokenizer.bos_id());
  result.context_tokens = int(result.prompt.size() + tokenizer.encode(context, false).size());
  for (const int32_t id : tokenizer.encode(whole, false)) result.prompt.push_back(id);
  if (result.context_tokens < 1 || result.context_tokens >= int(result.prompt.size()))
    return Error{ErrorCode::invalid,
                 fmt::format("a context of {} bytes and a continuation of {} bytes make {} and {} "
                             "tokens, each must have at least 1",
                             end, continuation.size(), result.context_tokens,
                             int(result.prompt.size()) - result.context_tokens)};
  return result;
}

Result<std::vector<double>> score_continuations(Engine& engine,
                                                const std::vector<Continuation>& continuations,
                                                const ScoreProgress& progress) {
  std::vector<std::vector<int32_t>> prompts;
  for (const Continuation& c : continuations) prompts.push_back(c.prompt);
  KIVI_ASSIGN_OR_RETURN(const auto logprobs, score_prompts(engine, prompts, progress));
  std::vector<double> sums;
  for (size_t i = 0; i < continuations.size(); ++i) {
    const auto first = logprobs[i].begin() + (continuations[i].context_tokens - 1);
    sums.push_back(std::accumulate(first, logprobs[i].end(), 0.0));
  }
  return sums;
}

}  // namespace kivi
