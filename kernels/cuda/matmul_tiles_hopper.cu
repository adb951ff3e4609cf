// SPDX-License-Identifier: Apache-2.0
// Which instance of matmul_tiles_hopper.cuh computes a product.
#include "kernels/cuda/matmul_tiles_hopper.h"

namespace kivi::cuda {

cudaError_t matmul_tiles_hopper(const TileProduct& p, DType type,
                                const TileProductWorkspace& workspace, int multiprocessors,
                                cudaStream_t stream) {
  const bool large_groups =
      p.kind == WeightKind::int4 && p.unit_columns >= kHopperBlocks * kWeightBlock;
  return with_half_type(type, [&]<class T>() {
    if (large_groups)
      return matmul_tiles_hopper_as<T, kHopperBlocks, 4>(p, workspace, multiprocessors, stream);
    return with_bits(p.bits, [&]<int Bits>() {
      return matmul_tiles_hopper_as<T, 1, Bits>(p, workspace, multiprocessors, stream);
    });
  });
}

}  // namespace kivi::cuda
