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
  bool wide;  // wide_head_tiles blocks of 8 query heads a warp, else one
  // Of the kernel of kv_attend_decode_heads.h: only `wide` is set besides. 0: it is another kernel.
  int heads_tiles;
  bool overlaps;  // with the kernel before
  // One block a multiprocessor runs beside attend_shared. Little work goes to these blocks alone.
  bool beside;
  bool whole_rests;  // no two warps share a segment; blocks beside attend_shared have twice as many
};

// A launch of kv_attend_decode over the cut that a launch `plan` with the same tuning makes, and
// its grid.
DecodeLaunch describe_decode(const DecodeArguments& s, const CudaProperties& device,
                             const DecodeWorkspace& workspace, const DecodeTuning& tuning,
                             DecodeGrid& grid);

// X: with parameters of 8 bits, a key bias or both. Explicitly instantiated by the files that CMake
// makes of kv_attend_decode_instance.cu.in.
template <int D, int KB, int VB, bool X>
cudaError_t launch_decode(const DecodeLaunch& a, const DecodeGrid& grid, cudaStream_t stream);

}  // namespace kivi::cuda
