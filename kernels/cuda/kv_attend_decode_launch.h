// One launcher for each format and head_dim of decode attention, so that they compile side by side.
#pragma once

#include "kernels/cuda/kv_attend_decode.h"

namespace kivi::cuda {

struct DecodeLaunch;

// Blocks, warps a block and dynamic shared memory.
struct DecodeGrid {
  int blocks;
  int warps;
  size_t shared_bytes;
};

// `wide`: two blocks of 8 query heads a warp. Explicitly instantiated in kv_attend_decode_*.cu.
template <int D, int KB, int VB>
cudaError_t launch_decode(const DecodeLaunch& a, const DecodeGrid& grid, bool wide,
                          cudaStream_t stream);

}  // namespace kivi::cuda
