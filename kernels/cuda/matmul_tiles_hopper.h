// SPDX-License-Identifier: Apache-2.0
// The instances of matmul_tiles_hopper.cuh, each in a source of its own.
#pragma once

#include "kernels/cuda/matmul_tiles.cuh"

namespace kivi::cuda {

// Columns of W that the kernel multiplies at a time, a stage, in blocks of kWeightBlock.
constexpr int kHopperBlocks = 4;

// SB: kHopperBlocks where a scale of int4 holds for a whole stage, or 1. Bits: of a code.
template <class T, int SB, int Bits>
cudaError_t matmul_tiles_hopper_as(const TileProduct& p, const TileProductWorkspace& workspace,
                                   int multiprocessors, cudaStream_t stream);

}  // namespace kivi::cuda
