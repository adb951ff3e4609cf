// SPDX-License-Identifier: Apache-2.0
// One launcher for each format and head_dim of decode attention, so that they compile side by side.
#pragma once

#include "kernels/cuda/kv_attend_decode.h"

namespace kivi::cuda {

struct DecodeLaunch;

struct DecodeGrid {
  int blocks;
  int warps;  // a block
  size_t shared_bytes;
  bool wide;      // wide_head_tiles blocks of 8 query heads a warp, else one
  bool overlaps;  // with the kernel before
};

// X: with parameters of 8 bits, a key bias or both. Explicitly instantiated by the files that CMake
// makes of kv_attend_decode_instance.cu.in.
template <int D, int KB, int VB, bool X>
cudaError_t launch_decode(const DecodeLaunch& a, const DecodeGrid& grid, cudaStream_t stream);

}  // namespace kivi::cuda
