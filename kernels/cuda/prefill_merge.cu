// SPDX-License-Identifier: Apache-2.0
// Joins softmax states of ranges of one history (FlashInfer, Ye et al. 2025, section 2.2):
//
//   m = max m_i,  w_i = 2^(scale_log2 (m_i - m)),  O = sum w_i O_i,  s = sum w_i s_i
//
// states [regions][t hq, d] and [t hq, 2] f32; the result replaces region 0.
//
// Mapping: a warp a row of states, a lane each 32nd channel. Cost: 4 (d + 2) bytes a row and region
// read, mostly from L2, and as many a row written. Test: tests/cuda/prefill_attend_test.cpp.
#include "kernels/cuda/prefill_attend.h"
#include "kernels/cuda/prefill_state.cuh"
#include "kernels/cuda/ptx.cuh"

namespace kivi::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;

// Grid (rows of states, work).
__global__ void __launch_bounds__(kThreads)
    prefill_merge_kernel(const __grid_constant__ PrefillArguments a, int head_dim) {
  const PrefillWork& work = a.work[blockIdx.y];
  if (work.regions == 1 || work.region != 0) return;
  const StepSequence& s = a.cache.sequences[work.sequence];
  const int row_of_sequence = int(blockIdx.x) * kWarps + int(threadIdx.x) / 32;
  if (row_of_sequence >= s.row_count * a.heads_q) return;
  const int64_t row = int64_t(s.row_begin) * a.heads_q + row_of_sequence;
  const int regions = work.regions, lane = int(threadIdx.x) % 32;

  // A lane for each region: its weight.
  float2 state{-INFINITY, 0};
  if (lane < regions) state = state_sums(a, lane, head_dim)[row];
  float largest = state.x;
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2)
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, offset));
  // Nothing is seen of a range outside the window, nor perhaps of all of them.
  const float weight = state.x == -INFINITY ? 0.f : exp2_fast((state.x - largest) * a.scale_log2);
  float sum = weight * state.y;
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);

  for (int c0 = 0; c0 < head_dim; c0 += 32) {  // all lanes, for the shuffles
    const int c = c0 + lane;
    float o = 0;
    for (int region = 0; region < regions; ++region) {
      const float w = __shfl_sync(0xffffffffu, weight, region);
      if (c < head_dim) o = fmaf(w, states_of(a, region, head_dim)[row * head_dim + c], o);
    }
    if (c < head_dim) states_of(a, 0, head_dim)[row * head_dim + c] = o;
  }
  if (lane == 0) state_sums(a, 0, head_dim)[row] = {largest, sum};
}

}  // namespace

cudaError_t merge_prefill_states(const PrefillArguments& a, int head_dim, int rows_max,
                                 cudaStream_t stream) {
  const dim3 grid(unsigned((rows_max * a.heads_q + kWarps - 1) / kWarps), unsigned(a.work_count));
  prefill_merge_kernel<<<grid, kThreads, 0, stream>>>(a, head_dim);
  return cudaGetLastError();
}

}  // namespace kivi::cuda
