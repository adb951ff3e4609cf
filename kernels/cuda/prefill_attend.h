// SPDX-License-Identifier: Apache-2.0
// Launchers of the ragged flash attention of prompt chunks: prefill_attend.cu (any GPU),
// prefill_attend_hopper.cu (wgmma), and the pass before them that puts a quantized history into
// scratch memory in 16 bits (kv_dequantize.cu).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include "kernels/cuda/cache_arguments.h"

namespace kivi::cuda {

// Tokens of a block of 16-bit history. Scratch memory is a sequence of such blocks for each KV
// head, with the layout of an f16 page: [block][KV head] K rows [64][d], then V rows [64][d],
// swizzled.
inline constexpr int kHistoryTile = 64;

// Tiles of tokens count *places*: a token's place is its position plus this. Tiles of 64 places are
// then tiles of 64 paged positions. Places below the shift hold no token.
KIVI_HOST_DEVICE constexpr int place_shift(const KvFormat& format, KvMode mode) {
  return mode == KvMode::append ? -format.sinks & (kHistoryTile - 1) : 0;
}

// What one launch computes of one sequence. A history that scratch cannot hold at once is attended
// in several launches, which hand on softmax states. Where a launch has too few rows to occupy the
// device, it cuts a history into ranges, each with states in a region of its own, which
// merge_prefill_states joins.
struct PrefillWork {
  int32_t sequence = 0;
  int32_t rows = 0;  // its row_count
  // Tiles of 64 places of the history that scratch holds in this launch: [tile_begin, tile_end).
  int32_t tile_begin = 0;
  int32_t tile_end = 0;
  int32_t block = 0;     // where tile_begin lies in scratch, in blocks; -1: not in scratch
  uint8_t is_first = 1;  // no launch before has left a state
  uint8_t is_last = 1;   // the step's own rows are attended too, and the result is written
  uint8_t region = 0;    // of the states that are read and written
  uint8_t regions = 1;   // so many ranges of this history, from region 0 on, are in this launch
};
inline constexpr int kPrefillWorkMax = 64;  // of one launch: they are kernel parameters

struct PrefillArguments {
  const __half* q = nullptr;   // [t, hq d]
  const __half* kv = nullptr;  // [t, 2 hk d], the step's own rows
  CacheArguments cache;
  int rows = 0;  // t
  int heads_q = 0;
  int layer = 0;
  int window = 0;        // sliding window in tokens; 0: none
  float scale_log2 = 0;  // scale * log2(e)
  // Softmax states between launches, region after region: O [t hq, d] f32, then maximum and sum [t
  // hq, 2] f32.
  float* states = nullptr;
  // 0: all sequences of one row in mode append, codes read where they lie; their lengths may change
  // from replay to replay of a graph.
  int work_count = 0;
  PrefillWork work[kPrefillWorkMax] = {};
};

// Bytes of shared memory that a block of prefill_attend takes for head size 256. GPUs of compute
// capability 8.6 and 8.9 have less.
inline constexpr int kWidePrefillShared = 164'352;

inline bool prefill_has_head_dim(int d) {
  return d == 64 || d == 80 || d == 96 || d == 128 || d == 256;
}

// Returns launch<head_dim>(out) with the type of `out`. cudaErrorInvalidValue where
// prefill_has_head_dim does not hold.
template <class Launch>
cudaError_t launch_prefill(int head_dim, void* out, DType out_type, const Launch& launch) {
  const auto with_type = [&]<int kDim>() {
    return out_type == DType::bf16
               ? launch.template operator()<kDim>(static_cast<__nv_bfloat16*>(out))
               : launch.template operator()<kDim>(static_cast<__half*>(out));
  };
  switch (head_dim) {
    case 64:
      return with_type.template operator()<64>();
    case 80:
      return with_type.template operator()<80>();
    case 96:
      return with_type.template operator()<96>();
    case 128:
      return with_type.template operator()<128>();
    case 256:
      return with_type.template operator()<256>();
    default:
      return cudaErrorInvalidValue;
  }
}

// out [t, hq d] of `out_type` (f16 or bf16). `count` is work_count, or the number of sequences
// where that is 0; `rows_max` is the largest row_count among them. cudaErrorInvalidValue where
// prefill_has_head_dim does not hold.
cudaError_t prefill_attend(const PrefillArguments& a, void* out, DType out_type, int head_dim,
                           int count, int rows_max, cudaStream_t stream);

// The same on wgmma, where has_prefill_hopper holds: never reads codes, so a history of a quantized
// format has to be in scratch.
bool has_prefill_hopper(int head_dim);
cudaError_t prefill_attend_hopper(const PrefillArguments& a, void* out, DType out_type,
                                  int head_dim, int multiprocessors, cudaStream_t stream);

// Joins the states of a launch's ranges in region 0. `rows_max`: of one sequence.
cudaError_t merge_prefill_states(const PrefillArguments& a, int head_dim, int rows_max,
                                 cudaStream_t stream);

// Writes the history tiles of `a.work` into scratch: codes become f16, 16-bit rows are copied, what
// is before its first token or behind its end becomes zero. `tiles_max`: of one sequence.
cudaError_t kv_dequantize(const PrefillArguments& a, int head_dim, int tiles_max,
                          cudaStream_t stream);

}  // namespace kivi::cuda
