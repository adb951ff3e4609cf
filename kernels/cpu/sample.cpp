// SPDX-License-Identifier: Apache-2.0
// sample: one token a row, in the order of operations of kernels/sampling.h.
//
// Cost of a row without top-k, top-p or min-p: two passes over the vocabulary, one of them with a
// Philox block for four tokens and one exponential a token, by vectors (`Screen`).
//
// Test: tests/kernels/sample_test.cpp.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/sample.cpp"
#include "kernels/cpu/simd_targets.h"
// clang-format off
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
// clang-format on

#include <hwy/contrib/algo/find-inl.h>
#include <hwy/contrib/math/math-inl.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/simd-inl.h"
#include "kernels/philox.h"

#ifndef KIVI_SCREEN_ARGUMENTS_
#define KIVI_SCREEN_ARGUMENTS_
namespace kivi {

// Tokens [first, first + count) of one row; first and count are multiples of kScreenGrain.
struct ScreenArguments {
  const float* logits;  // of token 0
  int32_t first;
  int32_t count;
  float largest;      // logit
  float temperature;  // > 0
  float winner;       // the largest logit / temperature + noise so far, `largest` taken off
  uint64_t seed;
  int32_t position;
};

// Four tokens a Philox block, up to 16 blocks a vector of 32-bit words.
inline constexpr int32_t kScreenGrain = 64;

}  // namespace kivi
#endif

HWY_BEFORE_NAMESPACE();
namespace kivi {
namespace HWY_NAMESPACE {

using DU = hn::CappedTag<uint32_t, 16>;
using DU64 = hn::Repartition<uint64_t, DU>;
using VU = hn::Vec<DU>;
using VU64 = hn::Vec<DU64>;

// A counter or a block of Philox in the low halves of 64-bit lanes; what stands in the high halves
// never reaches a low one.
struct PhiloxLanes {
  VU64 word[4];
};

HWY_INLINE VU64 times(VU64 x, uint32_t multiplier) {
  const DU du;
  return hn::MulEven(hn::BitCast(du, x), hn::Set(du, multiplier));
}

HWY_INLINE void philox_lanes(PhiloxLanes& c, uint32_t key0, uint32_t key1) {
  const DU64 d64;
  for (int round = 0; round < 10; ++round) {
    const VU64 p0 = times(c.word[0], kPhiloxMultiplier0);
    const VU64 p1 = times(c.word[2], kPhiloxMultiplier1);
    c.word[0] = hn::Xor(hn::Xor(hn::ShiftRight<32>(p1), c.word[1]), hn::Set(d64, key0));
    c.word[2] = hn::Xor(hn::Xor(hn::ShiftRight<32>(p0), c.word[3]), hn::Set(d64, key1));
    c.word[1] = p1;
    c.word[3] = p0;
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
}

// Random words of the tokens from `first` on, four for each 32-bit lane.
HWY_INLINE void words_of(const ScreenArguments& a, int32_t first, uint32_t* words) {
  const DU du;
  const DU64 d64;
  const VU64 even = hn::Add(hn::Set(d64, uint32_t(first) / 4), hn::ShiftLeft<1>(hn::Iota(d64, 0)));
  const VU64 position = hn::Set(d64, uint32_t(a.position)), zero = hn::Zero(d64);
  PhiloxLanes block[2] = {{{even, position, zero, zero}},
                          {{hn::Add(even, hn::Set(d64, 1)), position, zero, zero}}};
  for (PhiloxLanes& half : block) philox_lanes(half, uint32_t(a.seed), uint32_t(a.seed >> 32));
  const auto both = [&](int i) HWY_ATTR {
    return hn::OddEven(hn::BitCast(du, hn::ShiftLeft<32>(block[1].word[i])),
                       hn::BitCast(du, block[0].word[i]));
  };
  hn::StoreInterleaved4(both(0), both(1), both(2), both(3), du, words);
}

// Writes the tokens that may beat `winner` to `kept` (place for `count`) and returns how many: all
// that do, and few others. Noise -log(-log u) reaches x only if -log u <= exp(-x), and -log u is at
// least 1 - u; 1 - u is exact in fp32, and 1 % pays for all rounding.
int32_t Screen(const ScreenArguments& a, int32_t* kept) {
  const DU du;
  const hn::RebindToFloat<DU> df;
  const hn::RebindToSigned<DU> di;
  const int32_t lanes = int32_t(hn::Lanes(du));
  HWY_ALIGN uint32_t words[kScreenGrain];
  int32_t n = 0;
  for (int32_t token = a.first; token < a.first + a.count; token += 4 * lanes) {
    words_of(a, token, words);
    for (int32_t i = 0; i < 4 * lanes; i += lanes) {
      const auto word = hn::ShiftRight<9>(hn::Load(du, words + i));
      const auto fraction = hn::ConvertTo(df, hn::BitCast(di, word));
      const auto rest =
          hn::Mul(hn::Sub(hn::Set(df, 8388607.5f), fraction), hn::Set(df, 0x1p-23f));  // 1 - u
      const auto tempered =
          hn::Div(hn::Sub(hn::LoadU(df, a.logits + token + i), hn::Set(df, a.largest)),
                  hn::Set(df, a.temperature));
      const auto beyond = hn::Sub(tempered, hn::Set(df, a.winner));  // -(noise that it needs)
      const auto bound = hn::Mul(hn::Exp(df, beyond), hn::Set(df, 1.01f));
      const auto may = hn::Or(hn::Ge(beyond, hn::Set(df, -1.0f)), hn::Le(rest, bound));
      if (hn::AllFalse(df, may)) continue;
      const auto id = hn::Iota(di, token + i);
      n += int32_t(hn::CompressStore(id, hn::RebindMask(di, may), di, kept + n));
    }
  }
  return n;
}

// Copies logits; what is not finite becomes -infinity. Returns whether there was NaN or +infinity.
bool CopyFinite(const float* from, int64_t n, float* to) {
  const hn::CappedTag<float, 16> df;
  const auto lowest = hn::Set(df, -HUGE_VALF);
  bool broken = false;
  for_vectors(df, n, [&](int64_t i, size_t count) HWY_ATTR {
    const auto x = load_part(df, from + i, count);
    const auto finite = hn::IsFinite(x);
    broken |= !hn::AllTrue(df, hn::Or(finite, hn::Eq(x, lowest)));
    store_part(df, hn::IfThenElse(finite, x, lowest), to + i, count);
  });
  return broken;
}

// The lowest place of the largest of n numbers.
int64_t FirstLargest(const float* x, int64_t n) {
  const hn::CappedTag<float, 16> df;
  auto largest = hn::Set(df, x[0]);
  const int64_t lanes = int64_t(hn::Lanes(df)), whole = n / lanes * lanes;
  for (int64_t i = 0; i < whole; i += lanes) largest = hn::Max(largest, hn::LoadU(df, x + i));
  float value = max_of_lanes(df, largest);
  for (int64_t i = whole; i < n; ++i) value = HWY_MAX(value, x[i]);
  return int64_t(hn::Find(df, value, x, size_t(n)));
}

}  // namespace HWY_NAMESPACE
}  // namespace kivi
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kivi {
HWY_EXPORT(Screen);
HWY_EXPORT(CopyFinite);
HWY_EXPORT(FirstLargest);

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

// Tokens that the mask leaves out become -infinity.
void apply_mask(std::span<float> logits, std::span<const uint32_t> mask) {
  for (size_t word = 0; word < mask.size(); ++word) {
    if (mask[word] == 0xFFFFFFFFu) continue;
    const size_t end = std::min(logits.size(), (word + 1) * 32);
    for (size_t id = word * 32; id < end; ++id)
      if ((mask[word] >> (id % 32) & 1) == 0) logits[id] = kNever;
  }
}

// Penalties, then bias, in place. What is not finite, before or after, cannot be chosen: it is
// -infinity.
void adjust(std::span<float> logits, const SampleRow& row) {
  for (const PenaltyToken& p : row.penalties) {
    float& x = logits[size_t(p.id)];
    x = x > 0 ? x / row.repetition_penalty : x * row.repetition_penalty;
    x -= row.frequency_penalty * float(p.output_count);
    if (p.output_count > 0) x -= row.presence_penalty;
  }
  for (const LogitBias& b : row.bias) logits[size_t(b.id)] += b.bias;
  const auto forbid_infinite = [&](int32_t id) {
    if (!std::isfinite(logits[size_t(id)])) logits[size_t(id)] = kNever;
  };
  for (const PenaltyToken& p : row.penalties) forbid_infinite(p.id);
  for (const LogitBias& b : row.bias) forbid_infinite(b.id);
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

// argmax(logit / temperature + Gumbel noise) of the tokens that are visited, beginning with `best`.
class GumbelMaximum {
 public:
  GumbelMaximum(const SampleRow& row, Candidate best) : row_(row), largest_(best.logit) {
    block_ = sampler_words(row.seed, row.position, uint32_t(best.id) / 4);
    block_index_ = uint32_t(best.id) / 4;
    winner_ = {best.id, noise(uniform(best.id))};
  }

  void visit(const Candidate& c) {
    const Candidate noisy{c.id, (c.logit - largest_) / row_.temperature + noise(uniform(c.id))};
    if (before(noisy, winner_)) winner_ = noisy;
  }

  // All that are not -infinity; noise, two logarithms, is made for the few that may win.
  void visit_all(std::span<const float> logits) {
    constexpr int32_t kBlock = 8 * kScreenGrain;
    int32_t kept[kBlock + 16];  // a vector more, which a compressing store may touch
    const int32_t vocab = int32_t(logits.size()), whole = vocab / kScreenGrain * kScreenGrain;
    for (int32_t first = 0; first < whole; first += kBlock) {
      const int32_t count = HWY_DYNAMIC_DISPATCH(Screen)({.logits = logits.data(),
                                                          .first = first,
                                                          .count = std::min(kBlock, whole - first),
                                                          .largest = largest_,
                                                          .temperature = row_.temperature,
                                                          .winner = winner_.logit,
                                                          .seed = row_.seed,
                                                          .position = row_.position},
                                                         kept);
      for (int32_t i = 0; i < count; ++i) visit({kept[i], logits[size_t(kept[i])]});
    }
    for (int32_t id = whole; id < vocab; ++id)
      if (logits[size_t(id)] != kNever) visit({id, logits[size_t(id)]});
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
  const int64_t best = HWY_DYNAMIC_DISPATCH(FirstLargest)(logits.data(), int64_t(logits.size()));
  const Candidate first{int32_t(best), logits[size_t(best)]};
  if (first.logit == kNever) return lowest_allowed(int32_t(logits.size()), row);
  if (row.temperature == 0) return first.id;
  GumbelMaximum maximum(row, first);
  if (row.top_k > 0 || row.top_p < 1 || row.min_p > 0)
    for (const Candidate& c : keep(logits, row)) maximum.visit(c);
  else
    maximum.visit_all(logits);
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
  pool_.parallel_for(int64_t(rows.size()), logits.size() * 8, [&](int64_t i, int worker) {
    const SampleRow& row = rows[size_t(i)];
    const std::span<float> x(scratch_[size_t(worker)].floats(size_t(vocab)), size_t(vocab));
    SampledToken& token = samples[size_t(i)];
    token.broken = HWY_DYNAMIC_DISPATCH(CopyFinite)(logits.row<float>(i), vocab, x.data());
    apply_mask(x, row.mask);
    adjust(x, row);
    token.id = row.forced_token >= 0 ? row.forced_token : choose(x, row);
    if (row.forced_token < 0 && x[size_t(token.id)] == kNever) token.broken = true;
    if (row.logprobs >= 0) score(x, row.logprobs, token);
    ids.as<int32_t>()[i] = token.id;
  });
}

void CpuBackend::collect_samples(std::vector<SampledToken>& out) {
  KIVI_VERIFY(!samples_.empty());
  out = std::move(samples_.front());
  samples_.pop_front();
}

}  // namespace kivi
#endif
