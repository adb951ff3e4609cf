// SPDX-License-Identifier: Apache-2.0
// out = x W^T (+ bias) for x and W in e4m3, both with a scale for each row, by Hopper's products of
// a warpgroup (wgmma), for steps of few rows.
//
// Bytes: W once, n k. Operations: 2 t n k on tensor cores, which need half of the time of the bytes
// at most. So what matters is that memory is never idle: 120 to 200 KB of W are under way on each
// multiprocessor.
//
// Mapping. A tile is 256 rows of W by up to 64 rows of x, or 192 by up to 128. Each warpgroup
// multiplies 64 rows of W. Both operands come from shared memory, swizzled as wgmma.cuh says. One
// thread brings stages of 128 columns by two tensor copies. Work is cut into equal pieces, and
// blocks that share a tile add up its parts together (hopper_tile_parts.cuh), so results do not
// depend on timing. The first stage of W is asked for before the kernel that makes x has ended.
//
// Reference: CpuBackend::do_matmul of the numbers that codes and scales stand for. Test:
// tests/cuda/quantized_test.cpp. Figures: docs/benchmarks/weights.md.
#include <cuda.h>

#include <algorithm>

#include "kernels/cuda/hopper_tile_work.cuh"
#include "kernels/cuda/matmul_e4m3.h"
#include "kernels/cuda/prefill_attend.h"
#include "kernels/cuda/tensor_map_encoder.cuh"
#include "kernels/cuda/wgmma_rows.cuh"

namespace kivi::cuda {
namespace {

constexpr int kStepColumns = 32;  // of a product

// Sizes for up to Rows rows of x. A stage is x, then W.
template <int Rows>
struct E4m3Stage {
  static constexpr int kRows = Rows, kColumns = 128;  // bytes of a swizzled row
  static constexpr int kWAt = Rows * kColumns;
  static constexpr int kBytes = kWAt + kHeight<Rows> * kColumns;
  static constexpr int kStages = std::min(8, (kSharedMax - 2 * kAlignment) / kBytes);
  static_assert(kWAt % kAlignment == 0 && kBytes % kAlignment == 0);
};

template <class T, int Rows>
__global__ void __launch_bounds__(kThreadsOfBlock<Rows>, 1)
    matmul_e4m3_kernel(const __grid_constant__ HopperProduct a) {
#if KIVI_WGMMA
  using S = E4m3Stage<Rows>;
  const TileProduct& p = a.p;
  extern __shared__ unsigned char unaligned[];
  const uint32_t memory = shared_address(aligned_stages(unaligned));
  __shared__ uint64_t barriers[2 * S::kStages];  // full, then empty
  const int first = first_unit(int(blockIdx.x), p.units),
            last = first_unit(int(blockIdx.x) + 1, p.units);
  const int lane = threadIdx.x % 32;
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);  // known to be the warp's
  const uint32_t full = shared_address(barriers), empty = full + 8 * S::kStages;
  let_next_start();
  init_barriers<S>(full);
  if (warp >= kConsumers<Rows> / 32) {
    run_producers<S>(p, warp, first, last, [&] {
      const CachePolicies policies(a);
      fill_stages<S>(
          p, first, last, empty,
          [&](TilePlace at, int slot) {
            expect_bytes(full + 8 * slot, S::kBytes);
            copy_box(memory + slot * S::kBytes + S::kWAt, a.codes, at.stage * S::kColumns,
                     at.tile / a.chunks * kHeight<Rows>, full + 8 * slot, policies.of_w);
          },
          [&](TilePlace at, int slot) {
            copy_box(memory + slot * S::kBytes, a.x, at.stage * S::kColumns,
                     at.tile % a.chunks * Rows, full + 8 * slot, policies.of_x);
          });
    });
    return;
  }
  registers_up<kConsumerRegisters<Rows>>();
  wait_for_previous();  // before this kernel writes, and reads scales of x
  const SharedOperand x(memory, 16, 8 * S::kColumns),
      w(memory + S::kWAt + warp / 4 * (64 * S::kColumns), 16, 8 * S::kColumns);
  int slot = 0;  // stage in shared memory
  uint32_t parity = 0;
  for (int unit = first; unit < last;) {
    const int tile = unit / p.stages_of_tile, end = min(last, (tile + 1) * p.stages_of_tile);
    float sums[Rows / 8][4] = {};
    // Products of a stage are over long before the next stage is there, so none is kept under way.
    for (; unit < end; ++unit) {
      barrier_wait(full + 8 * slot, parity);
      wgmma_begin();
#pragma unroll
      for (int k = 0; k < S::kColumns; k += kStepColumns)
        wgmma_e4m3(sums, w.at(slot * S::kBytes + k), x.at(slot * S::kBytes + k), true);
      wgmma_commit();
      wgmma_wait<0>();
#pragma unroll
      for (int i = 0; i < Rows / 8; ++i) pin(sums[i]);
      if (lane == 0) barrier_arrive(empty + 8 * slot);
      if (++slot == S::kStages) slot = 0, parity ^= 1;
    }
    make_neighbors(sums);
    finish_tile<T, Rows, RowOrder::e4m3>(a, tile, sums);
  }
#endif
}

template <class T, int Rows>
cudaError_t launch(HopperProduct a, const TileProductWorkspace& workspace, int multiprocessors,
                   cudaStream_t stream) {
  using S = E4m3Stage<Rows>;
  const TileProduct& p = a.p;
  const int blocks = cut_work<S>(a, workspace, multiprocessors);
  if (blocks == 0) return cudaErrorInvalidValue;
  if (!make_map(a.codes, CU_TENSOR_MAP_DATA_TYPE_UINT8, p.codes, p.k, p.n, p.k, S::kColumns,
                kHeight<Rows>, CU_TENSOR_MAP_SWIZZLE_128B) ||
      !make_map(a.x, CU_TENSOR_MAP_DATA_TYPE_UINT8, p.x, p.k, p.t, p.k, S::kColumns, Rows,
                CU_TENSOR_MAP_SWIZZLE_128B))
    return cudaErrorNotSupported;
  return launch_hopper_kernel<S>(matmul_e4m3_kernel<T, Rows>, a, blocks, stream);
}

}  // namespace

bool has_matmul_e4m3(int64_t rows, const Weight& w, const Tensor& bias, const Tensor& out,
                     const TileProductWorkspace& workspace) {
  const auto is_half = [](DType type) { return type == DType::f16 || type == DType::bf16; };
  const DType type = out.dtype == DType::f32 && !bias.empty() ? bias.dtype : out.dtype;
  const int rows_max = w.columns > w.rows ? kE4m3RowsMax : kE4m3RowsAny;
  return has_prefill_hopper(128) && rows >= 1 && rows <= rows_max && w.columns % 16 == 0 &&
         reinterpret_cast<uintptr_t>(w.codes) % 16 == 0 && (is_half(type) || bias.empty()) &&
         (bias.empty() || bias.dtype == type) &&
         (w.rows + kTileProductHeight - 1) / kTileProductHeight *
                 ((rows + kTileProductWidth - 1) / kTileProductWidth) <=
             workspace.counters_count;
}

cudaError_t matmul_e4m3(const Matmul::Rows8& x, const Weight& w, const Tensor& bias,
                        const Tensor& out, const TileProductWorkspace& workspace,
                        int multiprocessors, cudaStream_t stream) {
  HopperProduct a{};
  a.p.codes = w.codes;
  a.p.x = reinterpret_cast<const std::byte*>(x.codes);
  a.p.bias = bias.empty() ? nullptr : bias.data;
  a.p.out = out.data;
  a.p.partials = static_cast<float4*>(workspace.partials);
  a.p.counters = workspace.counters;
  a.p.out_stride = out.row_stride;
  a.p.t = int(x.rows);
  a.p.n = int(w.rows);
  a.p.k = int(w.columns);
  a.p.out_f32 = out.dtype == DType::f32;
  a.p.pairs = out.row_stride % 2 == 0 && reinterpret_cast<uintptr_t>(out.data) % 4 == 0;
  a.w_scales = reinterpret_cast<const float*>(w.scales);
  a.x_scales = x.scales;
  // The type of a bias, and of rows in 16 bits.
  const DType type = !bias.empty() ? bias.dtype : a.p.out_f32 ? DType::bf16 : out.dtype;
  return with_half_type(type, [&]<class T>() {
    const auto with = [&]<int Rows>() {
      return launch<T, Rows>(a, workspace, multiprocessors, stream);
    };
    if (x.rows <= 16) return with.template operator()<16>();
    if (x.rows <= 32) return with.template operator()<32>();
    if (x.rows <= 48) return with.template operator()<48>();
    if (x.rows <= 64) return with.template operator()<64>();
    if (x.rows <= 96) return with.template operator()<96>();
    return with.template operator()<128>();
  });
}

}  // namespace kivi::cuda
