// SPDX-License-Identifier: Apache-2.0
// Sampling on the device. A row's logits (4 vocab bytes) are read once for the largest and once
// more (from L2) for the choice.
//
// Few rows are cut into parts, a block each, so that one sequence does not wait for one block to
// walk a vocabulary of 128,000 (209 us). The largest logit must be known before any noise is added,
// because the CPU's rounding is relative to it: hence two launches. In the second, the last block
// to arrive at a row joins its parts. Rows with filters or scores have a launch of their own
// (sampler_filter.cu).
//
// The choice is argmax(logit / T + Gumbel noise); noise is a pure function of (seed, position,
// token id), so no order and no company enters. Reference: kernels/cpu sample. Test:
// tests/cuda/ops_test.cpp.
#include <algorithm>

#include "base/verify.h"
#include "kernels/cuda/sampler.h"
#include "kernels/cuda/sampler_row.cuh"

namespace kivi::cuda {

// One token of one row whose logit changes. A token stands at most once in a row's list.
struct SamplerAdjustment {
  int32_t row, id;
  float repetition, subtract, bias;
};

namespace {

constexpr int kThreads = 512;
constexpr int kPartTokens = 4096;   // at least
constexpr int kBlocksWanted = 256;  // rows are cut where they alone are fewer

__global__ void adjust(float* logits, int64_t stride, const SamplerAdjustment* list, int count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const SamplerAdjustment a = list[i];
  float& x = logits[a.row * stride + a.id];
  float y = x;
  y = y > 0 ? y / a.repetition : y * a.repetition;
  x = y - a.subtract + a.bias;
}

constexpr int mask_words(int vocab) { return (vocab + 31) / 32; }

// grid (parts, masked rows): what a row's mask leaves out becomes -infinity. `masks` holds a row's
// number and its words, a masked row after the other. NaN and +infinity stay, so that a broken row
// is noticed. Cost: 4 vocab bytes of logits and vocab / 8 of mask a row.
__global__ void __launch_bounds__(kThreads)
    mask_kernel(float* logits, int64_t stride, int vocab, const uint32_t* masks, int words) {
  const uint32_t* mask = masks + int64_t(blockIdx.y) * (words + 1);
  float* row = logits + int64_t(mask[0]) * stride;
  for (int id = int(blockIdx.x * kThreads + threadIdx.x); id < vocab;
       id += int(gridDim.x) * kThreads) {
    if ((mask[1 + id / 32] >> (id % 32) & 1) == 0 && row[id] < INFINITY) row[id] = -INFINITY;
  }
}

// grid (parts, rows): the largest finite logit of each part.
__global__ void __launch_bounds__(kThreads) largest_kernel(SamplerLaunch a) {
  __shared__ Best scratch[kThreads / 32];
  const float* logits = a.logits + blockIdx.y * a.stride;
  const int begin = int(blockIdx.x) * a.part_size, end = min(a.vocab, begin + a.part_size);
  Best largest = kNothing;
  bool broken = false;
#pragma unroll 4
  for (int i = begin + int(threadIdx.x); i < end; i += kThreads) {
    const float x = logits[i];
    if (isfinite(x)) largest = better(largest, {x, i});
    broken |= !(x < INFINITY);
  }
  largest = block_best<kThreads>(largest, scratch);
  broken = __syncthreads_or(broken);
  if (threadIdx.x > 0) return;
  SamplerPart& part = a.parts[blockIdx.y * kSamplerParts + blockIdx.x];
  part.largest = largest;
  part.broken = broken;
}

// argmax of tempered logit + noise among the tokens [begin, end); begin is a multiple of 4. One
// Philox block serves a thread's four tokens.
__device__ Best noisy_best(const float* logits, int begin, int end, float largest,
                           const SamplerRow& row, Best* scratch) {
  Best chosen = kNothing;
  for (int first = begin + 4 * int(threadIdx.x); first < end; first += 4 * kThreads) {
    const PhiloxBlock words = sampler_words(row.seed, row.position, uint32_t(first) / 4);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float x = first + j < end ? logits[first + j] : -INFINITY;
      if (!isfinite(x)) continue;
      const float noise = gumbel_noise(words.word[j]);
      chosen = better(chosen, {(x - largest) / row.temperature + noise, first + j});
    }
  }
  return block_best<kThreads>(chosen, scratch);
}

// Joins the parts' choices in the last block to arrive at the row; the others are done (-1).
__device__ int32_t join_parts(const SamplerLaunch& a, Best chosen) {
  __shared__ bool last;
  SamplerPart* parts = a.parts + blockIdx.y * kSamplerParts;
  __syncthreads();  // `last` may lie where the block's best was found
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
  __shared__ Best scratch[kThreads / 32];
  const SamplerRow row = a.rows[blockIdx.y];
  const bool samples = row.forced < 0 && row.temperature > 0;
  if (row.is_filtered(a.vocab) || (blockIdx.x > 0 && !samples)) return;

  const Best largest = row_largest(a, int(blockIdx.y));
  int32_t choice = row.forced < 0 ? largest.id : row.forced;
  if (samples) {
    const int begin = int(blockIdx.x) * a.part_size, end = min(a.vocab, begin + a.part_size);
    const float* logits = a.logits + blockIdx.y * a.stride;
    choice = join_parts(a, noisy_best(logits, begin, end, largest.value, row, scratch));
    if (choice < 0) return;
    if (choice == kNothing.id) choice = largest.id;
  }
  const bool broken = row_broken(a, int(blockIdx.y));
  if (threadIdx.x == 0) {
    a.ids[blockIdx.y] = choice;
    a.results[int64_t(blockIdx.y) * a.results_stride] = first_result(choice, broken);
  }
}

}  // namespace

Sampler::Sampler(int rows_max) : rows_max_(rows_max), copies_(make_stream()) {
  const size_t rows = size_t(rows_max);
  const size_t results = rows * (1 + kMaxTopLogprobs) * sizeof(TokenLogprob);
  parts_ = make_device_memory(rows * kSamplerParts * sizeof(SamplerPart));
  arrived_ = make_device_memory(rows * sizeof(unsigned));
  KIVI_CUDA_VERIFY(cudaMemset(arrived_.get(), 0, rows * sizeof(unsigned)));
  for (Slot& slot : slots_) {
    slot.host_rows = make_pinned_memory(rows * sizeof(SamplerRow));
    slot.device_rows = make_device_memory(rows * sizeof(SamplerRow));
    slot.host_results = make_pinned_memory(results);
    slot.device_results = make_device_memory(results);
    slot.copied = make_event();
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

size_t Sampler::copy_masks(Slot& slot, int vocab, std::span<const SampleRow> rows) {
  const auto masked = size_t(
      std::count_if(rows.begin(), rows.end(), [](const SampleRow& r) { return !r.mask.empty(); }));
  if (masked == 0) return 0;
  const size_t each = size_t(mask_words(vocab)) + 1, total = masked * each;
  if (total > slot.mask_words_capacity) {  // grows to all rows at once: this waits
    slot.mask_words_capacity = std::max(total, rows.size() * each);
    slot.host_masks = make_pinned_memory(slot.mask_words_capacity * sizeof(uint32_t));
    slot.device_masks = make_device_memory(slot.mask_words_capacity * sizeof(uint32_t));
  }
  auto* host = reinterpret_cast<uint32_t*>(slot.host_masks.get());
  for (size_t i = 0, at = 0; i < rows.size(); ++i) {
    if (rows[i].mask.empty()) continue;
    host[at] = uint32_t(i);
    std::copy(rows[i].mask.begin(), rows[i].mask.end(), host + at + 1);
    at += each;
  }
  KIVI_CUDA_VERIFY(cudaMemcpyAsync(slot.device_masks.get(), host, total * sizeof(uint32_t),
                                   cudaMemcpyHostToDevice, copies_.get()));
  return masked;
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
    KIVI_VERIFY(r.logprobs <= kMaxTopLogprobs);
    slot.tops.push_back(r.logprobs);
    slot.results_stride = std::max(slot.results_stride, 1 + r.logprobs);
    // The one of top-k 1 is the greedy one, ties included.
    *row++ = {r.top_k == 1 ? 0.f : r.temperature,
              r.top_p,
              r.min_p,
              r.top_k,
              r.position,
              r.forced_token,
              r.logprobs,
              r.seed};
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
  KIVI_VERIFY(int(rows.size()) <= rows_max_ && launched_ - collected_ < slots_.size());
  Slot& slot = slots_[launched_++ % slots_.size()];
  slot.tops.clear();
  if (rows.empty()) return;
  const int vocab = int(logits.shape[1]), count = int(rows.size());
  const Counts counts = fill(slot, rows);
  const size_t adjustments = size_t(counts.penalties + counts.biases);
  const size_t masked = copy_masks(slot, vocab, rows);
  KIVI_CUDA_VERIFY(cudaMemcpyAsync(slot.device_rows.get(), slot.host_rows.get(),
                                   rows.size() * sizeof(SamplerRow), cudaMemcpyHostToDevice,
                                   copies_.get()));
  if (adjustments > 0)
    KIVI_CUDA_VERIFY(cudaMemcpyAsync(slot.device_adjustments.get(), slot.host_adjustments.get(),
                                     adjustments * sizeof(SamplerAdjustment),
                                     cudaMemcpyHostToDevice, copies_.get()));
  KIVI_CUDA_VERIFY(cudaEventRecord(slot.copied.get(), copies_.get()));
  KIVI_CUDA_VERIFY(cudaStreamWaitEvent(stream, slot.copied.get()));

  auto* values = logits.as<float>();
  if (masked > 0) {
    const int blocks = std::clamp((vocab + kPartTokens - 1) / kPartTokens, 1, kSamplerParts);
    mask_kernel<<<dim3(unsigned(blocks), unsigned(masked)), kThreads, 0, stream>>>(
        values, logits.row_stride, vocab,
        reinterpret_cast<const uint32_t*>(slot.device_masks.get()), mask_words(vocab));
  }
  const auto* list = reinterpret_cast<const SamplerAdjustment*>(slot.device_adjustments.get());
  if (counts.penalties > 0)
    adjust<<<unsigned((counts.penalties + 255) / 256), 256, 0, stream>>>(values, logits.row_stride,
                                                                         list, counts.penalties);
  if (counts.biases > 0)
    adjust<<<unsigned((counts.biases + 255) / 256), 256, 0, stream>>>(
        values, logits.row_stride, list + counts.penalties, counts.biases);
  const int parts_wanted = std::clamp(kBlocksWanted / count, 1, kSamplerParts);
  const int part_size =
      std::max(kPartTokens, (vocab + parts_wanted - 1) / parts_wanted + 3) / 4 * 4;
  const dim3 grid(unsigned((vocab + part_size - 1) / part_size), unsigned(count));
  const SamplerLaunch launch{.logits = values,
                             .stride = logits.row_stride,
                             .vocab = vocab,
                             .part_size = part_size,
                             .part_count = int(grid.x),
                             .parts = reinterpret_cast<SamplerPart*>(parts_.get()),
                             .arrived = reinterpret_cast<unsigned*>(arrived_.get()),
                             .rows = reinterpret_cast<const SamplerRow*>(slot.device_rows.get()),
                             .ids = ids.as<int32_t>(),
                             .results = reinterpret_cast<TokenLogprob*>(slot.device_results.get()),
                             .results_stride = slot.results_stride};
  largest_kernel<<<grid, kThreads, 0, stream>>>(launch);
  sample_kernel<<<grid, kThreads, 0, stream>>>(launch);
  const std::span filled(reinterpret_cast<const SamplerRow*>(slot.host_rows.get()), rows.size());
  if (std::any_of(filled.begin(), filled.end(),
                  [&](const SamplerRow& row) { return row.is_filtered(vocab); }))
    launch_filtered(launch, count, stream);
  KIVI_CUDA_VERIFY(cudaGetLastError());
  KIVI_CUDA_VERIFY(cudaMemcpyAsync(slot.host_results.get(), slot.device_results.get(),
                                   rows.size() * size_t(slot.results_stride) * sizeof(TokenLogprob),
                                   cudaMemcpyDeviceToHost, stream));
  KIVI_CUDA_VERIFY(cudaEventRecord(slot.done.get(), stream));
}

void Sampler::collect(std::vector<SampledToken>& out) {
  KIVI_VERIFY(collected_ < launched_);
  Slot& slot = slots_[collected_++ % slots_.size()];
  out.clear();
  if (slot.tops.empty()) return;
  KIVI_CUDA_VERIFY(cudaEventSynchronize(slot.done.get()));
  const auto* result = reinterpret_cast<const TokenLogprob*>(slot.host_results.get());
  for (const int top : slot.tops) {
    SampledToken token;
    token.broken = result->id < 0;  // first_result()
    token.id = token.broken ? ~result->id : result->id;
    if (top >= 0) {
      token.logprob = result->logprob;
      token.top.assign(result + 1, result + 1 + top);
    }
    out.push_back(std::move(token));
    result += slot.results_stride;
  }
}

}  // namespace kivi::cuda
