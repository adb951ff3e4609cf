// SPDX-License-Identifier: Apache-2.0
// Rows with top-k, top-p, min-p or log probabilities: one block a row, since each step needs the
// whole row's answer of the step before.
//
// A filter is a threshold on the logit: the largest value such that the weights (1 a token, or its
// probability) of the logits from there on up reach a goal. It is found by histograms. The first
// has bins of equal width in tempered logits below the largest, where probabilities are, so that
// neighbors in a warp seldom meet in a bin; what lies 32 and more below shares the last bin and is
// not counted. Then the boundary's bin is cut again, now over order-preserving integer keys of the
// logits, until one value is left: twice as a rule. Probabilities are added in fixed point, so the
// order of additions does not matter. Once the first boundary is known, what may be kept is listed
// in shared memory, if it fits there, and the row is not read again.
//
// Cost: a pass over a row of 128,256 tokens is instructions, 10 to 20 us; two where the list
// serves, else about eight, and one for each of the largest that are asked for. Reference:
// kernels/cpu sample. Test: tests/cuda/ops_test.cpp.
#include <cfloat>
#include <cub/block/block_reduce.cuh>
#include <cub/block/block_scan.cuh>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/sampler.h"
#include "kernels/cuda/sampler_row.cuh"

namespace kivi::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kBinBits = 11;
constexpr int kBins = 1 << kBinBits;
constexpr float kBinsPerUnit = 64;  // of a tempered logit: the last bin begins 32 below the largest
constexpr int kInFlight = 4;        // loads of four logits, a thread
constexpr int kListMax = 4096;      // tokens
constexpr float kMassUnit = 0x1p40f;

using Weight = unsigned long long;  // atomicAdd's word for 64 bits
using Scan = cub::BlockScan<Weight, kThreads>;
using Sum = cub::BlockReduce<Weight, kThreads>;
using FloatSum = cub::BlockReduce<float, kThreads>;

struct Boundary {
  int bin;      // kBins: the goal is not reached
  Weight left;  // of the goal, for this bin
};

struct Shared {
  Weight masses[kBins];
  unsigned counts[kBins];
  Boundary boundary;
  uint32_t keys[2];
  Weight total;
  union {
    Scan::TempStorage scan;
    Sum::TempStorage sum;
    FloatSum::TempStorage float_sum;
    Best best[kThreads / 32];
  };
  float normalizer;
  int list_count;
  Best list[kListMax];
};

// Larger floats have larger keys.
__device__ __forceinline__ uint32_t key_of(float x) {
  const uint32_t u = __float_as_uint(x);
  return u & 0x80000000u ? ~u : u | 0x80000000u;
}
__device__ __forceinline__ float value_of(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// A row and the scale that its logits are tempered with.
struct Row {
  const float* logits;
  int vocab;
  float largest;
  float inverse;  // 1 / temperature
  // Where not null, these tokens alone; the others have been found to be left out.
  const Best* list = nullptr;
  int list_count = 0;

  // 0 for the largest; does not fall as x falls.
  __device__ int bin(float x) const {
    return int(fminf((largest - x) * (inverse * kBinsPerUnit), float(kBins - 1)));
  }
  __device__ Weight mass(float x) const {
    return Weight(__expf((x - largest) * inverse) * kMassUnit);
  }
  // f(logit, id) for all that are finite.
  template <class F>
  __device__ void for_each(F&& f) const {
    const auto visit = [&](float x, int id) {
      if (isfinite(x)) f(x, id);
    };
    if (list != nullptr) {
      for (int i = threadIdx.x; i < list_count; i += kThreads) f(list[i].value, list[i].id);
      return;
    }
    const int vectors = reinterpret_cast<uintptr_t>(logits) % 16 == 0 ? vocab / 4 : 0;
    for (int first = int(threadIdx.x); first < vectors; first += kThreads * kInFlight) {
      float4 x[kInFlight];
#pragma unroll
      for (int j = 0; j < kInFlight; ++j) {
        const int i = first + j * kThreads;
        x[j] = make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
        if (i < vectors) x[j] = reinterpret_cast<const float4*>(logits)[i];
      }
#pragma unroll
      for (int j = 0; j < kInFlight; ++j) {
        const int id = 4 * (first + j * kThreads);
        visit(x[j].x, id), visit(x[j].y, id + 1), visit(x[j].z, id + 2), visit(x[j].w, id + 3);
      }
    }
    for (int id = 4 * vectors + int(threadIdx.x); id < vocab; id += kThreads) visit(logits[id], id);
  }
};

__device__ Weight block_sum(Weight x, Shared& s) {
  __syncthreads();
  const Weight sum = Sum(s.sum).Sum(x);
  if (threadIdx.x == 0) s.total = sum;
  __syncthreads();
  return s.total;
}

// The first bin at which the sum of `bins` from 0 on reaches `goal`. All threads.
template <class T>
__device__ Boundary find_boundary(const T* bins, Weight goal, Shared& s) {
  constexpr int kEach = kBins / kThreads;
  Weight mine[kEach], before[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) mine[i] = bins[threadIdx.x * kEach + i];
  if (threadIdx.x == 0) s.boundary = {kBins, 0};
  __syncthreads();
  Scan(s.scan).ExclusiveSum(mine, before);
#pragma unroll
  for (int i = 0; i < kEach; ++i)
    if (before[i] < goal && goal <= before[i] + mine[i])
      s.boundary = {int(threadIdx.x) * kEach + i, goal - before[i]};
  __syncthreads();
  return s.boundary;
}

template <class T>
__device__ void clear(T* bins) {
  __syncthreads();
  for (int i = threadIdx.x; i < kBins; i += kThreads) bins[i] = 0;
  __syncthreads();
}

// The weights of the row by bin; the last one stays empty.
template <class T, class WeightOf>
__device__ void fill_bins(const Row& row, T* bins, WeightOf weight) {
  clear(bins);
  row.for_each([&](float x, int) {
    const int bin = row.bin(x);
    if (bin < kBins - 1) atomicAdd(&bins[bin], weight(x));
  });
  __syncthreads();
}

// The least (which 0) and the largest (1) key whose logit falls into `bin`, by bisection: bins do
// not rise with keys.
__device__ uint32_t key_border(const Row& row, int bin, int which) {
  uint32_t low = key_of(-FLT_MAX), high = key_of(row.largest);
  while (low < high) {
    if (which == 0) {
      const uint32_t middle = low + (high - low) / 2;
      row.bin(value_of(middle)) <= bin ? high = middle : low = middle + 1;
    } else {
      const uint32_t middle = high - (high - low) / 2;
      row.bin(value_of(middle)) >= bin ? low = middle : high = middle - 1;
    }
  }
  return low;
}

// The largest threshold such that the weights of the logits >= it reach a goal, of which `boundary`
// says what is left for its own bin; -infinity where all together do not. Logits below `least` do
// not count. Overwrites `bins`.
template <class T, class WeightOf>
__device__ float refine(const Row& row, Boundary boundary, float least, T* bins, WeightOf weight,
                        Shared& s) {
  // The bin that is not counted takes what the others leave.
  const int bin = min(boundary.bin, kBins - 1);
  if (threadIdx.x < 2) s.keys[threadIdx.x] = key_border(row, bin, int(threadIdx.x));
  __syncthreads();
  uint32_t low = max(s.keys[0], key_of(fmaxf(least, -FLT_MAX))), high = s.keys[1];
  Weight goal = boundary.left;
  while (low < high) {
    const int shift = max(0, 32 - __clz(int(high - low)) - kBinBits);
    clear(bins);
    row.for_each([&](float x, int) {
      const uint32_t key = key_of(x);
      if (key >= low && key <= high) atomicAdd(&bins[(high - key) >> shift], weight(x));
    });
    __syncthreads();
    const Boundary found = find_boundary(bins, goal, s);
    if (found.bin == kBins) return -INFINITY;
    goal = found.left;
    high -= uint32_t(found.bin) << shift;
    if (high - low >= 1u << shift) low = high - ((1u << shift) - 1);
  }
  return value_of(low);
}

// Where bins that are not counted come in, what is left of the goal is for them.
template <class T>
__device__ Boundary boundary_of(const T* bins, Weight goal, Shared& s) {
  Boundary found = find_boundary(bins, goal, s);
  if (found.bin < kBins) return found;
  Weight counted = 0;
  for (int i = threadIdx.x; i < kBins; i += kThreads) counted += bins[i];
  return {kBins - 1, goal - block_sum(counted, s)};
}

// Narrows the row to the tokens down to a bin, if they fit into the list.
__device__ void narrow(Row& row, int bin, Shared& s) {
  if (bin >= kBins - 1) return;
  if (threadIdx.x == 0) s.list_count = 0;
  __syncthreads();
  row.for_each([&](float x, int id) {
    if (row.bin(x) > bin) return;
    const int at = atomicAdd(&s.list_count, 1);
    if (at < kListMax) s.list[at] = {x, id};
  });
  __syncthreads();
  if (s.list_count > kListMax) return;
  row.list = s.list, row.list_count = s.list_count;
}

// The n-th largest logit; -infinity where there are fewer. Narrows the row.
__device__ float nth_largest(Row& row, int n, Shared& s) {
  fill_bins(row, s.counts, [](float) { return 1u; });
  const Boundary boundary = boundary_of(s.counts, Weight(n), s);
  narrow(row, boundary.bin, s);
  return refine(
      row, boundary, -FLT_MAX, s.counts, [](float) { return 1u; }, s);
}

// The smallest logit such that what lies above it, of the logits >= `least`, has the probability
// top_p. Narrows the row.
__device__ float top_p_threshold(Row& row, float top_p, float least, Shared& s) {
  const auto mass = [&](float x) { return x >= least ? row.mass(x) : 0; };
  fill_bins(row, s.masses, mass);
  Weight mine = 0;
  for (int i = threadIdx.x; i < kBins; i += kThreads) mine += s.masses[i];
  const auto total = double(block_sum(mine, s));
  const auto goal = Weight(fmax(1.0, ceil(double(top_p) * total)));
  const Boundary boundary = boundary_of(s.masses, goal, s);
  if (row.list == nullptr) narrow(row, boundary.bin, s);
  return refine(row, boundary, least, s.masses, mass, s);
}

// The smallest logit that is kept. Narrows the row to what may be.
__device__ float filter(Row& row, const SamplerRow& what, Shared& s) {
  float threshold = -INFINITY;
  if (what.top_k > 0 && what.top_k < row.vocab) threshold = nth_largest(row, what.top_k, s);
  if (what.top_p < 1.f)
    threshold = fmaxf(threshold, top_p_threshold(row, what.top_p, threshold, s));
  if (what.min_p > 0.f)
    threshold = fmaxf(threshold, row.largest + __logf(what.min_p) * what.temperature);
  return threshold;
}

// argmax of tempered logit + noise over what is kept; kNothing where nothing is.
__device__ Best choose(const Row& row, const SamplerRow& what, float threshold, Shared& s) {
  Best chosen = kNothing;
  row.for_each([&](float x, int id) {
    if (!(x >= threshold)) return;
    const PhiloxBlock words = sampler_words(what.seed, what.position, uint32_t(id) / 4);
    const float noise = gumbel_noise(words.word[id % 4]);
    chosen = better(chosen, {(x - row.largest) / what.temperature + noise, id});
  });
  return block_best<kThreads>(chosen, s.best);
}

// The n largest, in order, to results[1..n]; what is not finite comes last, the lowest id first.
__device__ void write_largest(Row row, int n, float normalizer, TokenLogprob* results, Shared& s) {
  const float threshold = nth_largest(row, n, s);
  if (row.list != nullptr && row.list_count >= n) {
    for (int mine = threadIdx.x; mine < row.list_count; mine += kThreads) {
      const Best x = s.list[mine];
      if (!(x.value >= threshold)) continue;
      int rank = 0;
      for (int i = 0; i < row.list_count; ++i) rank += better(x, s.list[i]).id != x.id;
      if (rank < n) results[1 + rank] = {x.id, x.value - normalizer};
    }
    return;
  }
  Best last = {INFINITY, -1};  // no list, or fewer than n: one after the other
  for (int i = 0; i < n; ++i) {
    Best next = kNothing;
    for (int id = threadIdx.x; id < row.vocab; id += kThreads) {
      const float x = isfinite(row.logits[id]) ? row.logits[id] : -INFINITY;
      if (x < last.value || (x == last.value && id > last.id)) next = better(next, {x, id});
    }
    next = block_best<kThreads>(next, s.best);
    if (threadIdx.x == 0) results[1 + i] = {next.id, next.value - normalizer};
    last = next;
  }
}

__device__ void score(const Row& row, int choice, int n, TokenLogprob* results, Shared& s) {
  float sum = 0;
  row.for_each([&](float x, int) { sum += expf(x - row.largest); });
  __syncthreads();
  sum = FloatSum(s.float_sum).Sum(sum);
  if (threadIdx.x == 0) s.normalizer = row.largest + logf(sum);
  __syncthreads();
  const float normalizer = s.normalizer;
  if (threadIdx.x == 0) results[0].logprob = row.logits[choice] - normalizer;
  if (n > 0) write_largest({row.logits, row.vocab, row.largest, 1.f}, n, normalizer, results, s);
}

__global__ void __launch_bounds__(kThreads, 1) filtered_kernel(SamplerLaunch a) {
  extern __shared__ __align__(16) std::byte shared[];
  Shared& s = *reinterpret_cast<Shared*>(shared);
  const SamplerRow what = a.rows[blockIdx.x];
  if (!what.is_filtered(a.vocab)) return;
  const Best largest = row_largest(a, int(blockIdx.x));
  // A temperature next to nothing must not make 0 times infinity of the largest.
  const Row row{a.logits + blockIdx.x * a.stride, a.vocab, largest.value,
                what.temperature > 0 ? fminf(1.f / what.temperature, 1e30f) : 1.f};
  int32_t choice = what.forced;
  if (choice < 0) {
    choice = largest.id;
    if (what.temperature > 0) {
      Row kept = row;
      const float threshold = filter(kept, what, s);
      const Best chosen = choose(kept, what, threshold, s);
      if (chosen.id != kNothing.id) choice = chosen.id;
    }
  }
  TokenLogprob* results = a.results + int64_t(blockIdx.x) * a.results_stride;
  const bool broken = row_broken(a, int(blockIdx.x));
  if (threadIdx.x == 0) {
    a.ids[blockIdx.x] = choice;
    results[0] = first_result(choice, broken);
  }
  if (what.logprobs >= 0) score(row, choice, what.logprobs, results, s);
}

}  // namespace

void launch_filtered(const SamplerLaunch& a, int rows, cudaStream_t stream) {
  KIVI_CUDA_VERIFY(cudaFuncSetAttribute(
      filtered_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(sizeof(Shared))));
  filtered_kernel<<<unsigned(rows), kThreads, sizeof(Shared), stream>>>(a);
}

}  // namespace kivi::cuda
