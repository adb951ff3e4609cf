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

// The tokens that top-k, top-p and min-p keep, in no order. Tokens leave a heap largest first, so
// that no more of the vocabulary is sorted than is kept.
std::vector<Candidate> keep(std::span<const float> logits, const SampleRow& row) {
  const auto after = [](const Candidate& a, const Candidate& b) { return before(b, a); };
  std::vector<Candidate> all;
  all.reserve(logits.size());
  for (size_t i = 0; i < logits.size(); ++i)
    if (logits[i] != kNever) all.push_back({int32_t(i), logits[i]});
  if (row.top_k > 0 && size_t(row.top_k) < all.size()) {
    std::nth_element(all.begin(), all.begin() + row.top_k, all.end(), before);
    all.resize(size_t(row.top_k));
  }
  std::make_heap(all.begin(), all.end(), after);
  const float largest = all.front().logit;
  const auto weight = [&](const Candidate& c) {
    return std::exp(double(c.logit - largest) / double(row.temperature));
  };
  if (row.top_p < 1) {
    double total = 0, reached = 0;
    for (const Candidate& c : all) total += weight(c);
    std::vector<Candidate> kept;
    while (!all.empty() && (kept.empty() || reached < double(row.top_p) * total)) {
      std::pop_heap(all.begin(), all.end(), after);
      kept.push_back(all.back());
      all.pop_back();
      reached += weight(kept.back());
    }
    all = std::move(kept);
  }
  if (row.min_p > 0)
    std::erase_if(all, [&](const Candidate& c) { return weight(c) < double(row.min_p); });
  return all;
}

// argmax(logit / temperature + Gumbel noise) of the tokens that `visit` names, beginning with
// `best`. Noise is two logarithms; most tokens are ruled out by one exponential: the noise exceeds
// x only if its uniform number is above exp(-exp(-x)) >= 1 - exp(-x).
class GumbelMaximum {
 public:
  GumbelMaximum(const SampleRow& row, Candidate best) : row_(row), largest_(best.logit) {
    block_ = sampler_words(row.seed, row.position, uint32_t(best.id) / 4);
    block_index_ = uint32_t(best.id) / 4;
    winner_ = {best.id, noise(uniform(best.id))};
  }

  void visit(const Candidate& c) {
    const float tempered = (c.logit - largest_) / row_.temperature;
    const float needed = winner_.logit - tempered;
    const float u = uniform(c.id);
    if (needed > 1 && double(u) < 1 - 1.01 * double(std::exp(-needed))) return;
    const Candidate noisy{c.id, tempered + noise(u)};
    if (before(noisy, winner_)) winner_ = noisy;
  }

  int32_t winner() const { return winner_.id; }

 private:
  static float noise(float u) { return -std::log(-std::log(u)); }
  float uniform(int32_t id) {
    const uint32_t index = uint32_t(id) / 4;
    if (index != block_index_) {
      block_ = sampler_words(row_.seed, row_.position, index);
      block_index_ = index;
    }
    return uniform_of(block_.word[uint32_t(id) % 4]);
  }

  const SampleRow& row_;
  const float largest_;
  PhiloxBlock block_;
  uint32_t block_index_;
  Candidate winner_;
};

int32_t choose(std::span<const float> logits, const SampleRow& row) {
  const auto best = std::max_element(logits.begin(), logits.end());
  if (*best == kNever) return lowest_allowed(int32_t(logits.size()), row);
  const Candidate first{int32_t(best - logits.begin()), *best};
  if (row.temperature == 0) return first.id;
  GumbelMaximum maximum(row, first);
  if (row.top_k > 0 || row.top_p < 1 || row.min_p > 0) {
    for (const Candidate& c : keep(logits, row)) maximum.visit(c);
  } else {
    for (size_t i = 0; i < logits.size(); ++i)
      if (logits[i] != kNever) maximum.visit({int32_t(i), logits[i]});
  }
  return maximum.winner();
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
