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
  const HopperBlock<S> block(p, unaligned);
  const uint32_t memory = shared_address(block.memory);
  if (!block.multiplies()) {
    block.run_producers(p, [&] {
      const CachePolicies policies(a);
      fill_stages(
          p, block,
          [&](TilePlace at, int slot) {
            expect_bytes(block.full + 8 * slot, S::kBytes);
            copy_box(memory + slot * S::kBytes + S::kWAt, a.codes, at.stage * S::kColumns,
                     at.tile / a.chunks * kHeight<Rows>, block.full + 8 * slot, policies.of_w);
          },
          [&](TilePlace at, int slot) {
            copy_box(memory + slot * S::kBytes, a.x, at.stage * S::kColumns,
                     at.tile % a.chunks * Rows, block.full + 8 * slot, policies.of_x);
          });
    });
    return;
  }
  registers_up<kConsumerRegisters<Rows>>();
  wait_for_previous();  // before this kernel writes, and reads scales of x
  const SharedOperand x(memory, 16, 8 * S::kColumns),
      w(memory + S::kWAt + block.warp / 4 * (64 * S::kColumns), 16, 8 * S::kColumns);
  int slot = 0;  // stage in shared memory
  uint32_t parity = 0;
  for (int unit = block.first; unit < block.last;) {
    const int tile = unit / p.stages_of_tile, end = min(block.last, (tile + 1) * p.stages_of_tile);
    float sums[Rows / 8][4] = {};
    // Products of a stage are over long before the next stage is there, so none is kept under way.
    for (; unit < end; ++unit) {
      barrier_wait(block.full + 8 * slot, parity);
      wgmma_begin();
#pragma unroll
      for (int k = 0; k < S::kColumns; k += kStepColumns)
        wgmma_e4m3(sums, w.at(slot * S::kBytes + k), x.at(slot * S::kBytes + k), true);
      wgmma_commit();
      wgmma_wait<0>();
      pin_all(sums);
      if (block.lane == 0) barrier_arrive(block.empty + 8 * slot);
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

// The type of a bias, or else of `out`. f32 if there is no number of 16 bits.
DType half_type_of(const Tensor& bias, const Tensor& out) {
  return bias.empty() ? out.dtype : bias.dtype;
}

}  // namespace

bool has_matmul_e4m3(int64_t rows, const Weight& w, const Tensor& bias, const Tensor& out,
                     const TileProductWorkspace& workspace) {
  const DType type = half_type_of(bias, out);
  const bool has_type = type == DType::f16 || type == DType::bf16
                            ? out.dtype == type || out.dtype == DType::f32
                            : bias.empty() && type == DType::f32;
  const int rows_max = w.columns > w.rows ? kE4m3RowsMax : kE4m3RowsAny;
  return has_prefill_hopper(128) && rows >= 1 && rows <= rows_max && w.columns % 16 == 0 &&
         reinterpret_cast<uintptr_t>(w.codes) % 16 == 0 && has_type &&
         has_counters(rows, w, workspace);
}

cudaError_t matmul_e4m3(const Matmul::Rows8& x, const Weight& w, const Tensor& bias,
                        const Tensor& out, const TileProductWorkspace& workspace,
                        int multiprocessors, cudaStream_t stream) {
  HopperProduct a{};
  a.p = start_product(x.rows, w, bias, out, workspace);
  a.p.x = reinterpret_cast<const std::byte*>(x.codes);
  a.x_scales = x.scales;
  const DType type = half_type_of(bias, out);
  return with_half_type(type == DType::f32 ? DType::bf16 : type, [&]<class T>() {
    const auto with = [&]<int Rows>() {
      return launch<T, Rows>(a, workspace, multiprocessors, stream);
    };
    return with_tile_rows(a.p.t, with, [&](int) { return with.template operator()<128>(); });
  });
}

}  // namespace kivi::cuda
