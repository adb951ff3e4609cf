// SPDX-License-Identifier: Apache-2.0
// Flash attention over ragged prompt chunks on Hopper's warpgroup products (wgmma). The same result
// as prefill_attend.cu, whose header says what is computed; head sizes 64, 80, 96, 128 and 256.
//
// Mapping: a job is a tile of 128 packed query rows of one sequence and KV head, where row is token
// * group + head. A block a multiprocessor takes job after job. Two warpgroups multiply 64 rows
// each. A third one brings keys and values, 128 tokens at a time (64 of head size 256) and two
// tiles deep, to shared memory (prefill_hopper_loader.cuh). Sources are 16-bit: the step's own
// rows, staging, f16 pages, scratch (kv_dequantize). One thread starts tensor copies of whole
// tiles. Two things come in 16-byte asynchronous copies instead: the tile at the end of a history
// or of a sequence, with zeros behind the end, and the last 16 or 32 channels of a history of head
// size 80 or 96. Tiles go from the step's own last row back to the first row of the history, so
// that tiles with a causal edge come first.
//
// A warpgroup has S = Q K^T of one tile under way together with O += P V of the tile before, and
// takes the exponentials of S while the tensor cores still work on O. Named barriers let the two
// warpgroups issue products in turn, so that one multiplies while the other one takes exponentials
// (FlashAttention-3, Shah et al. 2024, section 3).
//
// Cost: 4 d FLOP a (query, key) pair; 4 d bytes from L2 a key for each 128 rows. Reference:
// kernels/cpu kv_attend. Test: tests/cuda/prefill_attend_test.cpp.
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "kernels/cuda/prefill_attend.h"
#include "kernels/cuda/prefill_hopper_job.cuh"
#include "kernels/cuda/prefill_hopper_loader.cuh"
#include "kernels/cuda/prefill_state.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/tensor_map_encoder.cuh"
#include "kernels/cuda/wgmma.cuh"
#include "kernels/cuda/wgmma_softmax.cuh"

namespace kivi::cuda {
namespace {

using namespace prefill_hopper;

// `filled`: tiles before this job.
template <int kDim, class Out>
__device__ __forceinline__ void multiply_tiles(const PrefillArguments& a,
                                               const Job<kTileOf<kDim>>& job, int round,
                                               uint32_t filled, int wg, uint32_t shared,
                                               Out* __restrict__ out) {
  constexpr int kTile = kTileOf<kDim>, kPart = Shared<kDim>::kPart;
  const uint32_t barriers = shared + Shared<kDim>::kBarriers;
  const int thread = int(threadIdx.x) % kGroupThreads;
  const int warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
  const StepSequence& s = job.s;
  const int group = job.group, packed = job.packed;
  const int group_row = job.row_first + wg * kGroupRows;  // first packed row of the warpgroup
  const uint32_t q_tile =
      shared + uint32_t((round % kQueryStages<kDim> * kGroups + wg) * Shared<kDim>::kQuery);

  // This lane's rows: their packed numbers and positions (-1: none).
  int position[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int p = group_row + warp * 16 + g + 8 * i;
    position[i] = p < packed ? job.past + p / group : -1;
  }
  const int position_first = group_row < packed ? job.past + group_row / group : -1;
  const int position_last = job.past + (min(group_row + kGroupRows, packed) - 1) / group;

  float o[kDim / 2];
#pragma unroll
  for (int i = 0; i < kDim / 2; ++i) o[i] = 0;
  Softmax softmax;
  if (!job.work.is_first) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (position[i] < 0) continue;
      const int64_t row = state_row(a, s, job.head, group, group_row + warp * 16 + g + 8 * i);
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        const float2 pair = *reinterpret_cast<const float2*>(states_of(a, job.work.region, kDim) +
                                                             row * kDim + n * 8 + 2 * t);
        o[4 * n + 2 * i] = pair.x, o[4 * n + 2 * i + 1] = pair.y;
      }
      const float2 state = state_sums(a, job.work.region, kDim)[row];
      softmax.maximum[i] = state.x;
      softmax.sum[i] = t == 0 ? state.y : 0.f;  // the lanes' sums are added up at the end
    }
  }

  float scores[kTile / 2];
  uint32_t p[kTile / 4];
  const SharedOperand query_operand(q_tile, 16, 8 * kRowBytes);
  const SharedOperand key_operand(shared + Shared<kDim>::kKeys, 16, 8 * kRowBytes);
  const SharedOperand value_operand(shared + Shared<kDim>::kValues, kPart, 8 * kRowBytes);
  const auto score = [&](uint32_t n) {
    const SharedOperand keys = key_operand.moved(n % kStages * Shared<kDim>::kSide);
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k)
      wgmma_shared(scores, query_operand.at(k / 4 * kGroupRows * kRowBytes + k % 4 * 32),
                   keys.at(k / 4 * kPart + k % 4 * 32), k > 0);
  };
  const auto accumulate = [&](uint32_t n) {
    const SharedOperand values = value_operand.moved(n % kStages * Shared<kDim>::kSide);
#pragma unroll
    for (int k = 0; k < kTile / 16; ++k)
      wgmma_registers(o, p + 4 * k, values.at(k * 16 * kRowBytes));
  };
  // What a row does not see becomes -inf.
  const auto mask = [&](int i) {
    const int first = job.first(i), end = job.end(i);
    const bool inside = first >= job.shift && first + kTile - 1 <= position_first &&
                        first + kTile <= end && (a.window == 0 || first > position_last - a.window);
    if (inside) return;
    int seen_first[2], seen_last[2];  // of each of this lane's rows
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      seen_first[r] = a.window > 0 ? max(job.shift, position[r] - a.window + 1) : job.shift;
      seen_last[r] = min(position[r], end - 1);
    }
#pragma unroll
    for (int n = 0; n < kTile / 2; ++n) {
      const int key = first + n / 4 * 8 + 2 * t + n % 2, r = n / 2 % 2;
      if (key < seen_first[r] || key > seen_last[r]) scores[n] = -INFINITY;
    }
  };

  const auto release = [&](Barrier empty, uint32_t n) {
    warp_arrive(barrier_at(barriers, empty, int(n % kStages)));
  };
  const auto release_queries = [&] {
    warp_arrive(barrier_at(barriers, Barrier::queries_empty, round % kQueryStages<kDim>));
  };

  const int count = job.count();
  wait_full<kQueryStages<kDim>>(barriers, Barrier::queries_full, uint32_t(round));
  if (count > 0) {
    wait_full(barriers, Barrier::keys_full, filled);
    wgmma_begin();
    score(filled);
    wgmma_commit();
    wgmma_wait<0>();
    pin(scores);
    release(Barrier::keys_empty, filled);
    mask(0);
    softmax.update(scores, a.scale_log2);
    rescale<kDim>(o, softmax.shrink);
    pack(scores, p);
    if (wg == 1 && count > 1) turn_give(0);
    for (int i = 1; i < count; ++i) {
      const uint32_t n = filled + uint32_t(i);
      wait_full(barriers, Barrier::keys_full, n);
      turn_wait(wg);
      pin(o);
      wgmma_begin();
      score(n);
      wgmma_commit();
      wait_full(barriers, Barrier::values_full, n - 1);
      wgmma_begin();
      accumulate(n - 1);
      wgmma_commit();
      if (wg == 0 || i + 1 < count) turn_give(1 - wg);
      wgmma_wait<1>();
      pin(scores);
      release(Barrier::keys_empty, n);
      mask(i);
      softmax.update(scores, a.scale_log2);
      // The exponentials are to be taken while O is under way: the compiler keeps them before a
      // branch that depends on them.
      if (softmax.moved()) {
        wgmma_wait<0>();
        pin(o);
        rescale<kDim>(o, softmax.shrink);
      } else {
        wgmma_wait<0>();
        pin(o);
      }
      release(Barrier::values_empty, n - 1);
      pack(scores, p);
    }
    release_queries();
    const uint32_t n = filled + uint32_t(count - 1);
    wait_full(barriers, Barrier::values_full, n);
    pin(o);
    wgmma_begin();
    accumulate(n);
    wgmma_commit();
    wgmma_wait<0>();
    pin(o);
    release(Barrier::values_empty, n);
  } else {
    release_queries();
  }

#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float sum = softmax.sum[i];
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    if (position[i] < 0) continue;
    const int64_t row = state_row(a, s, job.head, group, group_row + warp * 16 + g + 8 * i);
    if (!job.work.is_last) {
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n)
        *reinterpret_cast<float2*>(states_of(a, job.work.region, kDim) + row * kDim + n * 8 +
                                   2 * t) = {o[4 * n + 2 * i], o[4 * n + 2 * i + 1]};
      if (t == 0) state_sums(a, job.work.region, kDim)[row] = {softmax.maximum[i], sum};
      continue;
    }
    const float inverse = 1.f / sum;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n)
      store_pair(out + row * kDim + n * 8 + 2 * t, o[4 * n + 2 * i] * inverse,
                 o[4 * n + 2 * i + 1] * inverse);
  }
}

// One block a multiprocessor, or one a job where there are fewer.
template <int kDim, class Out>
__global__ void __launch_bounds__(kThreads, 1)
    prefill_attend_hopper_kernel(const __grid_constant__ PrefillArguments a,
                                 const __grid_constant__ TensorMaps maps, Out* __restrict__ out) {
  if (KIVI_WGMMA != 0) {
    extern __shared__ __align__(1024) unsigned char memory[];
    const uint32_t shared = shared_address(memory);
    const int wg = __shfl_sync(0xffffffffu, int(threadIdx.x) / kGroupThreads, 0);  // uniform
    if (threadIdx.x == 0) {
      const uint32_t barriers = shared + Shared<kDim>::kBarriers;
      for (int stage = 0; stage < kStages; ++stage) {
        for (const Barrier full : {Barrier::queries_full, Barrier::keys_full, Barrier::values_full})
          barrier_init(barrier_at(barriers, full, stage), kGroupThreads / 32);
        for (const Barrier empty :
             {Barrier::queries_empty, Barrier::keys_empty, Barrier::values_empty})
          barrier_init(barrier_at(barriers, empty, stage), kGroups * kGroupThreads / 32);
      }
    }
    __syncthreads();
    if (wg == kGroups) {
      registers_down<kLoaderRegisters<kDim>>();
      Loader<kDim>(a, maps, shared).run();
    } else {
      registers_up<kProductRegisters<kDim>>();
      Job<kTileOf<kDim>> job;
      uint32_t filled = 0;
      for (int round = 0; find_job(a, round, job); ++round) {
        multiply_tiles<kDim>(a, job, round, filled, wg, shared, out);
        filled += uint32_t(job.count());
      }
    }
  }
}

// A tensor of `rows` rows of `heads` heads of `head_dim` halves, of which a copy brings 64 columns
// of `box_rows` rows of a head. Of one head, it has two dimensions.
cudaError_t make_tensor_map(const void* data, int64_t rows, int64_t heads, int64_t head_dim,
                            int box_rows, CUtensorMapSwizzle swizzle, CUtensorMap& map) {
  const auto encode = tensor_map_encoder();
  if (encode == nullptr) return cudaErrorNotSupported;
  const auto rows_seen = cuuint64_t(std::max<int64_t>(rows, box_rows));
  const auto width = cuuint64_t(head_dim);
  const cuuint64_t row_bytes = width * cuuint64_t(heads) * 2;
  const bool flat = heads == 1;
  const cuuint64_t sizes[3] = {width, flat ? rows_seen : cuuint64_t(heads), rows_seen};
  const cuuint64_t strides[2] = {width * 2, row_bytes};
  const cuuint32_t box[3] = {64, flat ? cuuint32_t(box_rows) : 1, cuuint32_t(box_rows)};
  const cuuint32_t steps[3] = {1, 1, 1};
  const CUresult result =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, flat ? 2 : 3, const_cast<void*>(data), sizes,
             strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
             CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

// A region that a step does not have is described, but not read.
cudaError_t make_tensor_maps(const PrefillArguments& a, int head_dim, int tile, TensorMaps& maps) {
  const KvLayout& layout = a.cache.store.layout;
  const int64_t heads = layout.shape.heads;
  const auto blocks = [&](const std::byte* data, int64_t count, CUtensorMap& map) {
    return make_tensor_map(count > 0 ? static_cast<const void*>(data) : a.q,
                           count * 2 * kHistoryTile, 1, head_dim, kHistoryTile,
                           CU_TENSOR_MAP_SWIZZLE_NONE, map);
  };
  if (cudaError_t e = make_tensor_map(a.kv, a.rows, 2 * heads, head_dim, tile,
                                      CU_TENSOR_MAP_SWIZZLE_128B, maps.own);
      e != cudaSuccess)
    return e;
  const bool f16 = layout.format.kind == KvKind::f16;
  const std::byte* history = f16 ? a.cache.store.page_block(a.layer, 0, 0) : a.cache.store.scratch;
  const int64_t count = f16 ? (a.cache.store.page_count * layout.shape.layers - a.layer) * heads
                            : a.cache.store.scratch_bytes / layout.staging_block_bytes();
  if (cudaError_t e = blocks(history, count, maps.history); e != cudaSuccess) return e;
  return blocks(a.cache.store.staging_block(a.layer, 0, 0),
                a.cache.store.staging_page_count * heads, maps.staging);
}

template <int kDim, class Out>
cudaError_t launch(const PrefillArguments& a, Out* out, dim3 grid, cudaStream_t stream) {
  constexpr int kBytes = Shared<kDim>::kBytes;
  auto* kernel = prefill_attend_hopper_kernel<kDim, Out>;
  if (cudaError_t e =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
      e != cudaSuccess) {
    return e;
  }
  TensorMaps maps;
  if (cudaError_t e = make_tensor_maps(a, kDim, kTileOf<kDim>, maps); e != cudaSuccess) return e;
  kernel<<<grid, kThreads, kBytes, stream>>>(a, maps, out);
  return cudaGetLastError();
}

// Whether the code that runs on this device has wgmma: it was compiled for sm_90a.
__global__ void probe_kernel(int* has_wgmma) { *has_wgmma = KIVI_WGMMA; }

}  // namespace

bool has_prefill_hopper(int head_dim) {
  static const bool has = [] {
    cudaFuncAttributes attributes{};
    return cudaFuncGetAttributes(&attributes, probe_kernel) == cudaSuccess &&
           attributes.binaryVersion == 90 && attributes.ptxVersion == 90;
  }();
  return has && prefill_has_head_dim(head_dim);
}

cudaError_t prefill_attend_hopper(const PrefillArguments& a, void* out, DType out_type,
                                  int head_dim, int multiprocessors, cudaStream_t stream) {
  const int heads = a.cache.store.layout.shape.heads, group = a.heads_q / heads;
  int64_t jobs = 0;
  for (int i = 0; i < a.work_count; ++i)
    jobs += int64_t(a.work[i].rows * group + kRows - 1) / kRows * heads;
  const dim3 grid(unsigned(std::min<int64_t>(jobs, multiprocessors)));
  return launch_prefill(head_dim, out, out_type, [&]<int kDim>(auto* typed) {
    return launch<kDim>(a, typed, grid, stream);
  });
}

}  // namespace kivi::cuda
