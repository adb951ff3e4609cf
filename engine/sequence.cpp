// SPDX-License-Identifier: Apache-2.0
#include "engine/sequence.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/verify.h"

namespace kivi {
namespace {

std::vector<PenaltyToken> penalties_of_prompt(std::vector<int32_t> prompt) {
  std::ranges::sort(prompt);
  std::vector<PenaltyToken> seen;
  for (const int32_t id : prompt)
    if (seen.empty() || seen.back().id != id) seen.push_back({id, 0, 1});
  return seen;
}

// Stop ids are forbidden by a bias of -infinity until min_tokens have been sampled.
std::vector<LogitBias> bias_with_forbidden(const Sequence& s) {
  std::vector<LogitBias> bias;
  for (const int32_t id : s.stop_ids) bias.push_back({id, -std::numeric_limits<float>::infinity()});
  for (const LogitBias& entry : s.request.sampling.logit_bias)
    if (!std::ranges::binary_search(s.stop_ids, entry.id)) bias.push_back(entry);
  return bias;
}

}  // namespace

std::unique_ptr<Sequence> make_sequence(Request request, std::shared_ptr<TokenStream> stream,
                                        uint64_t seed, std::span<const int32_t> eos_token_ids) {
  auto s = std::make_unique<Sequence>();
  s->request = std::move(request);
  s->stream = std::move(stream);
  s->tokens = std::exchange(s->request.prompt, {});
  s->prompt_tokens = s->prefill_tokens = int(s->tokens.size());
  s->times.arrival = s->request.arrival;

  SamplingParams& p = s->request.sampling;
  s->seed = p.seed.value_or(seed);
  p.top_k = std::max(p.top_k, 0);
  s->stop_ids = p.stop_token_ids;
  if (!p.ignore_eos)
    s->stop_ids.insert(s->stop_ids.end(), eos_token_ids.begin(), eos_token_ids.end());
  std::ranges::sort(s->stop_ids);
  s->stop_ids.erase(std::unique(s->stop_ids.begin(), s->stop_ids.end()), s->stop_ids.end());
  // Where a constraint allows nothing but the end, min_tokens cannot forbid it.
  const bool forbids = p.min_tokens > 0 && s->request.constraint == nullptr;
  s->bias = forbids ? bias_with_forbidden(*s) : p.logit_bias;
  if (s->penalized()) s->penalties = penalties_of_prompt(s->tokens);
  return s;
}

void push_placeholder(Sequence& s) {
  s.tokens.push_back(-1);
  const SamplingParams& p = s.request.sampling;
  if (s.output_tokens() == p.min_tokens) s.bias = p.logit_bias;
}

std::optional<FinishReason> set_sampled(Sequence& s, int position, int32_t id) {
  KIVI_VERIFY(position >= s.prompt_tokens && s.tokens[size_t(position)] == -1 && id >= 0);
  s.tokens[size_t(position)] = id;
  if (s.penalized()) {
    const auto place = std::ranges::lower_bound(s.penalties, id, {}, &PenaltyToken::id);
    if (place != s.penalties.end() && place->id == id) {
      ++place->output_count;
    } else {
      s.penalties.insert(place, {id, 1, 0});
    }
  }
  if (std::ranges::binary_search(s.stop_ids, id)) return FinishReason::stop;
  if (s.request.constraint != nullptr) {
    const TokenConstraint::Verdict verdict = s.request.constraint->accept(id);
    if (verdict == TokenConstraint::Verdict::complete) return FinishReason::stop;
    if (verdict == TokenConstraint::Verdict::broken) return FinishReason::error;
  }
  if (position + 1 - s.prompt_tokens >= s.request.sampling.max_tokens) return FinishReason::length;
  return std::nullopt;
}

}  // namespace kivi
