// Sampling on the device. A row's logits (4 vocab bytes) are read once for the largest, once more
// (from L2) for the choice, and a few times more where filters or log probabilities are asked for.
//
// Few rows are cut into parts, a block each, so that one sequence does not wait for one block to
// walk a vocabulary of 128,000 (209 us). The largest logit must be known before any noise is added,
// because the CPU's rounding is relative to it: hence two launches. In the second, the last block
// to arrive at a row joins its parts. Rows with filters or scores are the business of one block.
//
// A filter is a threshold on the tempered logit: top-k by a radix select over an order-preserving
// key (8 bits a pass, histogram in shared memory), top-p by the same select over probability mass,
// in fixed point so that the order of additions does not matter; min-p directly. The choice is
// argmax(logit / T + Gumbel noise) over what is above the largest threshold; noise is a pure
// function of (seed, position, token id), so no order and no company enters. Reference: kernels/cpu
// sample. Test: tests/cuda/sampler_test.cpp.
#include <algorithm>

#include "kernels/cuda/sampler.h"
#include "kernels/philox.h"
#include "kernels/verify.h"

namespace kivi::cuda {

struct SamplerRow {
  float temperature, top_p, min_p;
  int32_t top_k, position, forced, logprobs;
  uint64_t seed;
};

// One token of one row whose logit changes. A token stands at most once in a row's list.
struct SamplerAdjustment {
  int32_t row, id;
  float repetition, subtract, bias;
};

struct Best {
  float value;
  int32_t id;
};

struct SamplerPart {
  Best largest;
  Best chosen;
};

namespace {

constexpr int kThreads = 512;
constexpr int kBins = 256;
constexpr int kSamplerParts = 32;   // at most, a row: a warp joins them
constexpr int kPartTokens = 4096;   // at least
constexpr int kBlocksWanted = 256;  // rows are cut where they alone are fewer

__device__ __forceinline__ Best better(Best a, Best b) {
  return b.value > a.value || (b.value == a.value && b.id < a.id) ? b : a;
}

__device__ Best warp_best(Best x) {
#pragma unroll
  for (int o = 16; o > 0; o /= 2) {
    const Best y = {__shfl_xor_sync(0xffffffffu, x.value, o),
                    __shfl_xor_sync(0xffffffffu, x.id, o)};
    x = better(x, y);
  }
  return x;
}

__device__ Best block_best(Best x, Best* scratch) {
  x = warp_best(x);
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  x = scratch[0];
  for (int w = 1; w < kThreads / 32; ++w) x = better(x, scratch[w]);
  return x;
}

__device__ float block_sum(float x, float* scratch) {
#pragma unroll
  for (int o = 16; o > 0; o /= 2) x += __shfl_xor_sync(0xffffffffu, x, o);
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  float total = 0;
  for (int w = 0; w < kThreads / 32; ++w) total += scratch[w];
  return total;
}

// Larger floats have larger keys.
__device__ __forceinline__ uint32_t key_of(float x) {
  const uint32_t u = __float_as_uint(x);
  return u & 0x80000000u ? ~u : u | 0x80000000u;
}
__device__ __forceinline__ float value_of(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// The largest threshold value such that the weights of all logits >= it (and >= floor) sum to at
// least `goal`. weight(x) is an integer; the sum is exact.
template <class Weight>
__device__ float select(const float* logits, int vocab, float floor_value, uint64_t goal,
                        Weight weight, unsigned long long* histogram, unsigned long long* found) {
  uint32_t prefix = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int i = threadIdx.x; i < kBins; i += kThreads) histogram[i] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < vocab; i += kThreads) {
      const float x = logits[i];
      if (!isfinite(x) || !(x >= floor_value)) continue;
      const uint32_t key = key_of(x);
      if (shift < 24 && (key >> (shift + 8)) != (prefix >> (shift + 8))) continue;
      atomicAdd(&histogram[(key >> shift) & 0xff], static_cast<unsigned long long>(weight(x)));
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      uint64_t left = goal;
      int bin = kBins - 1;
      for (; bin > 0 && histogram[bin] < left; --bin) left -= histogram[bin];
      found[0] = static_cast<unsigned long long>(bin);
      found[1] = left;
    }
    __syncthreads();
    prefix |= uint32_t(found[0]) << shift;
    goal = found[1];
    __syncthreads();
  }
  return value_of(prefix);
}

__global__ void adjust(float* logits, int64_t stride, const SamplerAdjustment* list, int count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const SamplerAdjustment a = list[i];
  float& x = logits[a.row * stride + a.id];
  float y = x;
  y = y > 0 ? y / a.repetition : y * a.repetition;
  x = y - a.subtract + a.bias;
}

struct SamplerLaunch {
  const float* logits;
  int64_t stride;
  int vocab;
  int part_size;       // tokens of a part, a multiple of 4
  SamplerPart* parts;  // [rows][kSamplerParts]
  unsigned* arrived;   // [rows], zeros between launches
  const SamplerRow* rows;
  int32_t* ids;
  TokenLogprob* results;
  int results_stride;
};

// The best of a row's parts, in every thread.
__device__ Best best_part(const SamplerPart* parts, int count, Best SamplerPart::*which) {
  const int lane = int(threadIdx.x % 32);
  Best x = {-INFINITY, 0x7fffffff};
  if (lane < count) {
    const Best* best = &(parts[lane].*which);
    x = {__ldcg(&best->value), __ldcg(&best->id)};
  }
  return warp_best(x);
}

// grid (parts, rows): the largest finite logit of each part.
__global__ void __launch_bounds__(kThreads) largest_kernel(SamplerLaunch a) {
  __shared__ Best scratch[kThreads / 32];
  const float* logits = a.logits + blockIdx.y * a.stride;
  const int begin = int(blockIdx.x) * a.part_size, end = min(a.vocab, begin + a.part_size);
  Best largest = {-INFINITY, 0x7fffffff};
#pragma unroll 4
  for (int i = begin + int(threadIdx.x); i < end; i += kThreads) {
    const float x = logits[i];
    if (isfinite(x)) largest = better(largest, {x, i});
  }
  largest = block_best(largest, scratch);
  if (threadIdx.x == 0) a.parts[blockIdx.y * kSamplerParts + blockIdx.x].largest = largest;
}

// argmax of tempered logit + noise over the logits >= threshold among the tokens [begin, end);
// begin is a multiple of 4. One Philox block serves a thread's four tokens.
__device__ Best noisy_best(const float* logits, int begin, int end, float largest, float threshold,
                           const SamplerRow& row, Best* scratch) {
  Best chosen = {-INFINITY, 0x7fffffff};
  for (int first = begin + 4 * int(threadIdx.x); first < end; first += 4 * kThreads) {
    const PhiloxBlock words = sampler_words(row.seed, row.position, uint32_t(first) / 4);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float x = first + j < end ? logits[first + j] : -INFINITY;
      if (!(x >= threshold) || !isfinite(x)) continue;
      const float noise = -logf(-logf(uniform_of(words.word[j])));
      chosen = better(chosen, {(x - largest) / row.temperature + noise, first + j});
    }
  }
  return block_best(chosen, scratch);
}

// Joins the parts' choices in the last block to arrive at the row; the others are done (-1).
__device__ int32_t join_parts(const SamplerLaunch& a, Best chosen) {
  __shared__ bool last;
  SamplerPart* parts = a.parts + blockIdx.y * kSamplerParts;
  if (threadIdx.x == 0) {
    parts[blockIdx.x].chosen = chosen;
    __threadfence();
    last = atomicAdd(&a.arrived[blockIdx.y], 1u) == gridDim.x - 1;
    if (last) a.arrived[blockIdx.y] = 0;
  }
  __syncthreads();
  if (!last) return -1;
  __threadfence();
  return best_part(parts, int(gridDim.x), &SamplerPart::chosen).id;
}

// grid (parts, rows).
__global__ void __launch_bounds__(kThreads, 1) sample_kernel(SamplerLaunch a) {
  __shared__ Best best_scratch[kThreads / 32];
  __shared__ float sum_scratch[kThreads / 32];
  __shared__ unsigned long long histogram[kBins];
  __shared__ unsigned long long found[2];
  const SamplerRow row = a.rows[blockIdx.y];
  const int vocab = a.vocab;
  const float* logits = a.logits + blockIdx.y * a.stride;
  TokenLogprob* result = a.results + int64_t(blockIdx.y) * a.results_stride;

  const bool samples = row.forced < 0 && row.temperature > 0;
  const bool in_parts =
      samples && row.logprobs < 0 && (row.top_k <= 0 || row.top_k >= vocab) && row.top_p >= 1.f;
  if (blockIdx.x > 0 && !in_parts) return;

  Best largest =
      best_part(a.parts + blockIdx.y * kSamplerParts, int(gridDim.x), &SamplerPart::largest);
  if (largest.id == 0x7fffffff) largest = {0, 0};  // nothing is finite

  int32_t choice = row.forced;
  if (choice < 0 && !samples) choice = largest.id;
  if (samples) {
    const float inverse = 1.f / row.temperature;
    float threshold = -INFINITY;
    if (row.top_k > 0 && row.top_k < vocab) {
      threshold = select(
          logits, vocab, -INFINITY, uint64_t(row.top_k),
          [](float x) { return isfinite(x) ? 1u : 0u; }, histogram, found);
    }
    if (row.top_p < 1.f) {
      const auto mass = [&](float x) {  // exp in units of 2^-40: exact integer sums
        return static_cast<unsigned long long>(__expf((x - largest.value) * inverse) *
                                               1099511627776.f);
      };
      // Total mass of what is kept so far, as an exact integer.
      if (threadIdx.x == 0) found[0] = 0;
      __syncthreads();
      unsigned long long mine = 0;
      for (int i = threadIdx.x; i < vocab; i += kThreads)
        if (logits[i] >= threshold && isfinite(logits[i])) mine += mass(logits[i]);
      atomicAdd(&found[0], mine);
      __syncthreads();
      const double total = double(found[0]);
      __syncthreads();
      const auto goal = static_cast<uint64_t>(fmax(1.0, ceil(double(row.top_p) * total)));
      threshold = fmaxf(threshold, select(logits, vocab, threshold, goal, mass, histogram, found));
    }
    if (row.min_p > 0.f)
      threshold = fmaxf(threshold, largest.value + __logf(row.min_p) * row.temperature);
    const int begin = in_parts ? int(blockIdx.x) * a.part_size : 0;
    const int end = in_parts ? min(vocab, begin + a.part_size) : vocab;
    const Best chosen = noisy_best(logits, begin, end, largest.value, threshold, row, best_scratch);
    choice = chosen.id;
    if (in_parts) {
      choice = join_parts(a, chosen);
      if (choice < 0) return;
    }
    if (choice == 0x7fffffff) choice = largest.id;
  }
  if (threadIdx.x == 0) {
    a.ids[blockIdx.y] = choice;
    result[0] = {choice, 0};
  }
  if (row.logprobs < 0) return;

  float sum = 0;
  for (int i = threadIdx.x; i < vocab; i += kThreads) {
    const float x = logits[i];
    if (isfinite(x)) sum += expf(x - largest.value);
  }
  const float normalizer = largest.value + logf(block_sum(sum, sum_scratch));
  if (threadIdx.x == 0) result[0].logprob = logits[choice] - normalizer;
  Best last = {INFINITY, -1};
  for (int n = 0; n < row.logprobs; ++n) {
    Best next = {-INFINITY, 0x7fffffff};
    for (int i = threadIdx.x; i < vocab; i += kThreads) {
      const float x = logits[i];
      if (x < last.value || (x == last.value && i > last.id)) next = better(next, {x, i});
    }
    next = block_best(next, best_scratch);
    if (threadIdx.x == 0) result[1 + n] = {next.id, next.value - normalizer};
    last = next;
  }
}

}  // namespace

Sampler::Sampler(int rows_max) : rows_max_(rows_max) {
  const size_t rows = size_t(rows_max);
  const size_t results = rows * (1 + kMaxTopLogprobs) * sizeof(TokenLogprob);
  parts_ = make_device_memory(rows * kSamplerParts * sizeof(SamplerPart));
  arrived_ = make_device_memory(rows * sizeof(unsigned));
  CUDA_VERIFY(cudaMemset(arrived_.get(), 0, rows * sizeof(unsigned)));
  for (Slot& slot : slots_) {
    slot.host_rows = make_pinned_memory(rows * sizeof(SamplerRow));
    slot.device_rows = make_device_memory(rows * sizeof(SamplerRow));
    slot.host_results = make_pinned_memory(results);
    slot.device_results = make_device_memory(results);
    slot.done = make_event();
  }
}

Sampler::~Sampler() = default;

// Grows to twice what is needed: a request with long penalties is rare, and this waits.
void Sampler::reserve_adjustments(Slot& slot, size_t count) {
  if (count <= slot.adjustments_capacity) return;
  slot.adjustments_capacity = count * 2;
  slot.host_adjustments = make_pinned_memory(count * 2 * sizeof(SamplerAdjustment));
  slot.device_adjustments = make_device_memory(count * 2 * sizeof(SamplerAdjustment));
}

// Fills the pinned rows and adjustments; returns how many of each kind. Biases come after all
// penalties, in a launch of their own: a token may have both.
Sampler::Counts Sampler::fill(Slot& slot, std::span<const SampleRow> rows) {
  size_t total = 0;
  for (const SampleRow& r : rows) total += r.penalties.size() + r.bias.size();
  reserve_adjustments(slot, total);

  auto* row = reinterpret_cast<SamplerRow*>(slot.host_rows.get());
  auto* adjustment = reinterpret_cast<SamplerAdjustment*>(slot.host_adjustments.get());
  Counts counts;
  slot.results_stride = 1;
  for (size_t i = 0; i < rows.size(); ++i) {
    const SampleRow& r = rows[i];
    VERIFY(r.logprobs <= kMaxTopLogprobs);
    slot.tops.push_back(r.logprobs);
    slot.results_stride = std::max(slot.results_stride, 1 + r.logprobs);
    *row++ = {r.temperature, r.top_p,        r.min_p,    r.top_k,
              r.position,    r.forced_token, r.logprobs, r.seed};
    for (const PenaltyToken& p : r.penalties) {
      const float subtract = r.frequency_penalty * float(p.output_count) +
                             (p.output_count > 0 ? r.presence_penalty : 0.f);
      *adjustment++ = {int32_t(i), p.id, r.repetition_penalty, subtract, 0};
      ++counts.penalties;
    }
  }
  for (size_t i = 0; i < rows.size(); ++i)
    for (const LogitBias& b : rows[i].bias) {
      *adjustment++ = {int32_t(i), b.id, 1, 0, b.bias};
      ++counts.biases;
    }
  return counts;
}

void Sampler::launch(const Tensor& logits, std::span<const SampleRow> rows, const Tensor& ids,
                     cudaStream_t stream) {
  VERIFY(int(rows.size()) <= rows_max_ && launched_ - collected_ < slots_.size());
  Slot& slot = slots_[launched_++ % slots_.size()];
  slot.tops.clear();
  if (rows.empty()) return;
  const Counts counts = fill(slot, rows);

  CUDA_VERIFY(cudaMemcpyAsync(slot.device_rows.get(), slot.host_rows.get(),
                              rows.size() * sizeof(SamplerRow), cudaMemcpyHostToDevice, stream));
  auto* values = logits.as<float>();
  if (counts.penalties + counts.biases > 0) {
    const auto* list = reinterpret_cast<const SamplerAdjustment*>(slot.device_adjustments.get());
    CUDA_VERIFY(cudaMemcpyAsync(slot.device_adjustments.get(), slot.host_adjustments.get(),
                                size_t(counts.penalties + counts.biases) * sizeof *list,
                                cudaMemcpyHostToDevice, stream));
    if (counts.penalties > 0)
      adjust<<<unsigned((counts.penalties + 255) / 256), 256, 0, stream>>>(
          values, logits.row_stride, list, counts.penalties);
    if (counts.biases > 0)
      adjust<<<unsigned((counts.biases + 255) / 256), 256, 0, stream>>>(
          values, logits.row_stride, list + counts.penalties, counts.biases);
  }
  const int vocab = int(logits.shape[1]), count = int(rows.size());
  const int parts_wanted = std::clamp(kBlocksWanted / count, 1, kSamplerParts);
  const int part_size =
      std::max(kPartTokens, (vocab + parts_wanted - 1) / parts_wanted + 3) / 4 * 4;
  const dim3 grid(unsigned((vocab + part_size - 1) / part_size), unsigned(count));
  const SamplerLaunch launch{.logits = values,
                             .stride = logits.row_stride,
                             .vocab = vocab,
                             .part_size = part_size,
                             .parts = reinterpret_cast<SamplerPart*>(parts_.get()),
                             .arrived = reinterpret_cast<unsigned*>(arrived_.get()),
                             .rows = reinterpret_cast<const SamplerRow*>(slot.device_rows.get()),
                             .ids = ids.as<int32_t>(),
                             .results = reinterpret_cast<TokenLogprob*>(slot.device_results.get()),
                             .results_stride = slot.results_stride};
  largest_kernel<<<grid, kThreads, 0, stream>>>(launch);
  sample_kernel<<<grid, kThreads, 0, stream>>>(launch);
  CUDA_VERIFY(cudaGetLastError());
  CUDA_VERIFY(cudaMemcpyAsync(slot.host_results.get(), slot.device_results.get(),
                              rows.size() * size_t(slot.results_stride) * sizeof(TokenLogprob),
                              cudaMemcpyDeviceToHost, stream));
  CUDA_VERIFY(cudaEventRecord(slot.done.get(), stream));
}

void Sampler::collect(std::vector<SampledToken>& out) {
  VERIFY(collected_ < launched_);
  Slot& slot = slots_[collected_++ % slots_.size()];
  out.clear();
  if (slot.tops.empty()) return;
  CUDA_VERIFY(cudaEventSynchronize(slot.done.get()));
  const auto* result = reinterpret_cast<const TokenLogprob*>(slot.host_results.get());
  for (const int top : slot.tops) {
    SampledToken token;
    token.id = result->id;
    if (top >= 0) {
      token.logprob = result->logprob;
      token.top.assign(result + 1, result + 1 + top);
    }
    out.push_back(std::move(token));
    result += slot.results_stride;
  }
}

}  // namespace kivi::cuda
