// sample: one token a row, in the order of operations of kernels/sampling.h.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/philox.h"

namespace kivi {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

struct Candidate {
  int32_t id;
  float logit;
};

// Largest first; equal logits: lowest id first.
bool before(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

// Penalties, then bias, in place. What is not finite afterwards can not be chosen: -infinity.
void adjust(std::span<float> logits, const SampleRow& row) {
  for (const PenaltyToken& p : row.penalties) {
    float& x = logits[size_t(p.id)];
    x = x > 0 ? x / row.repetition_penalty : x * row.repetition_penalty;
    x -= row.frequency_penalty * float(p.output_count);
    if (p.output_count > 0) x -= row.presence_penalty;
  }
  for (const LogitBias& b : row.bias) logits[size_t(b.id)] += b.bias;
  for (float& x : logits)
    if (!std::isfinite(x)) x = kNever;
}

// Where no logit is finite: the lowest id that no bias forbids.
int32_t lowest_allowed(int32_t vocab, const SampleRow& row) {
  for (int32_t id = 0; id < vocab; ++id) {
    const auto forbids = [&](const LogitBias& b) { return b.id == id && b.bias == kNever; };
    if (std::none_of(row.bias.begin(), row.bias.end(), forbids)) return id;
  }
  return 0;
}

// The tokens that top-k, top-p and min-p keep, largest first.
std::vector<Candidate> keep(std::span<const float> logits, const SampleRow& row) {
  std::vector<Candidate> kept;
  for (size_t i = 0; i < logits.size(); ++i)
    if (logits[i] != kNever) kept.push_back({int32_t(i), logits[i]});
  std::sort(kept.begin(), kept.end(), before);
  if (row.top_k > 0 && size_t(row.top_k) < kept.size()) kept.resize(size_t(row.top_k));
  const float largest = kept[0].logit;
  const auto weight = [&](const Candidate& c) {
    return std::exp(double(c.logit - largest) / double(row.temperature));
  };
  double total = 0;
  for (const Candidate& c : kept) total += weight(c);
  if (row.top_p < 1) {
    double reached = 0;
    size_t n = 0;
    while (n < kept.size() && reached < double(row.top_p) * total) reached += weight(kept[n++]);
    kept.resize(std::max<size_t>(n, 1));
  }
  if (row.min_p > 0)
    while (weight(kept.back()) < double(row.min_p)) kept.pop_back();
  return kept;
}

int32_t choose(std::span<const float> logits, const SampleRow& row) {
  const auto best = std::max_element(logits.begin(), logits.end());
  if (*best == kNever) return lowest_allowed(int32_t(logits.size()), row);
  if (row.temperature == 0) return int32_t(best - logits.begin());
  Candidate winner{-1, kNever};
  for (const Candidate& c : keep(logits, row)) {
    const float noise = -std::log(-std::log(sampler_uniform(row.seed, row.position, c.id)));
    const Candidate noisy{c.id, (c.logit - *best) / row.temperature + noise};
    if (winner.id < 0 || before(noisy, winner)) winner = noisy;
  }
  return winner.id;
}

void score(std::span<const float> logits, int32_t n, SampledToken& token) {
  const float largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float x : logits) sum += std::exp(double(x - largest));
  const float log_sum = float(std::log(sum));
  const auto logprob = [&](int32_t id) { return (logits[size_t(id)] - largest) - log_sum; };
  token.logprob = logprob(token.id);
  std::vector<Candidate> all;
  for (size_t i = 0; i < logits.size(); ++i) all.push_back({int32_t(i), logits[i]});
  const auto count = std::min<size_t>(size_t(n), all.size());
  std::partial_sort(all.begin(), all.begin() + std::ptrdiff_t(count), all.end(), before);
  for (size_t i = 0; i < count; ++i) token.top.push_back({all[i].id, logprob(all[i].id)});
}

}  // namespace

void CpuBackend::do_sample(const Tensor& logits, std::span<const SampleRow> rows,
                           const Tensor& ids) {
  const int64_t vocab = logits.shape[1];
  std::vector<SampledToken>& samples = samples_.emplace_back(rows.size());
  pool_.parallel_for(int64_t(rows.size()), logits.size() * 8, [&](int64_t i, int) {
    const SampleRow& row = rows[size_t(i)];
    std::vector<float> x(logits.row<float>(i), logits.row<float>(i) + vocab);
    adjust(x, row);
    SampledToken& token = samples[size_t(i)];
    token.id = row.forced_token >= 0 ? row.forced_token : choose(x, row);
    if (row.logprobs >= 0) score(x, row.logprobs, token);
    ids.as<int32_t>()[i] = token.id;
  });
}

void CpuBackend::collect_samples(std::vector<SampledToken>& out) {
  VERIFY(!samples_.empty());
  out = std::move(samples_.front());
  samples_.pop_front();
}

}  // namespace kivi
