// SPDX-License-Identifier: Apache-2.0
// The definition of launch_decode, for the files that instantiate it.
#pragma once

#include "kernels/cuda/kv_attend_decode.cuh"
#include "kernels/cuda/kv_attend_decode_launch.h"

namespace kivi::cuda {

template <int D, int KB, int VB, int NT, bool X, bool TIMED = false>
cudaError_t launch_decode_kernel(const DecodeLaunch& a, const DecodeGrid& grid,
                                 cudaStream_t stream) {
  auto* kernel = kv_attend_decode<D, KB, VB, NT, X, TIMED>;
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(grid.shared_bytes));
  if (error != cudaSuccess) return error;
  if (grid.overlaps)
    return launch_overlapped(kernel, dim3(unsigned(grid.blocks)), dim3(unsigned(grid.warps * 32)),
                             grid.shared_bytes, stream, a);
  kernel<<<grid.blocks, grid.warps * 32, grid.shared_bytes, stream>>>(a);
  return cudaGetLastError();
}

template <int D, int KB, int VB, bool X>
cudaError_t launch_decode(const DecodeLaunch& a, const DecodeGrid& grid, cudaStream_t stream) {
  return grid.wide ? launch_decode_kernel<D, KB, VB, wide_head_tiles(D), X>(a, grid, stream)
                   : launch_decode_kernel<D, KB, VB, 1, X>(a, grid, stream);
}

}  // namespace kivi::cuda
