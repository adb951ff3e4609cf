// SPDX-License-Identifier: Apache-2.0
// The definition of launch_decode, for the files that instantiate it.
#pragma once

#include "kernels/cuda/kv_attend_decode.cuh"
#include "kernels/cuda/kv_attend_decode_launch.h"

namespace kivi::cuda {

template <int D, int KB, int VB, int NT, bool X, bool SHARES, bool G32 = false, bool FOUR = false,
          bool TIMED = false>
cudaError_t launch_decode_kernel(const DecodeLaunch& a, const DecodeGrid& grid,
                                 cudaStream_t stream) {
  auto* kernel = kv_attend_decode<D, KB, VB, NT, X, SHARES, G32, FOUR, TIMED>;
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(grid.shared_bytes));
  if (error != cudaSuccess) return error;
  if constexpr (SHARES)  // as attend_shared, so that blocks of both fit at once
    if (const cudaError_t e =
            cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                 int(cudaSharedmemCarveoutMaxShared));
        e != cudaSuccess)
      return e;
  if (grid.overlaps)
    return launch_overlapped(kernel, dim3(unsigned(grid.blocks)), dim3(unsigned(grid.warps * 32)),
                             grid.shared_bytes, stream, a);
  kernel<<<grid.blocks, grid.warps * 32, grid.shared_bytes, stream>>>(a);
  return cudaGetLastError();
}

// Up to 8 query heads on a KV head, without shared pages.
template <int D, int KB, int VB, bool X, bool TIMED = false>
cudaError_t launch_decode_narrow(const DecodeLaunch& a, const DecodeGrid& grid,
                                 cudaStream_t stream) {
  // Most launches are of such formats: they have kernels of their own.
  if constexpr (KB < 8)
    if (a.group == 32 && a.byte_parameters == X)
      return a.ratio <= 4
                 ? launch_decode_kernel<D, KB, VB, 1, X, false, true, true, TIMED>(a, grid, stream)
                 : launch_decode_kernel<D, KB, VB, 1, X, false, true, false, TIMED>(a, grid,
                                                                                    stream);
  return launch_decode_kernel<D, KB, VB, 1, X, false, false, false, TIMED>(a, grid, stream);
}

template <int D, int KB, int VB, bool X>
cudaError_t launch_decode(const DecodeLaunch& a, const DecodeGrid& grid, cudaStream_t stream) {
  constexpr int kWide = wide_head_tiles(D);
  if (a.shared_slots != nullptr)
    return grid.wide ? launch_decode_kernel<D, KB, VB, kWide, X, true>(a, grid, stream)
                     : launch_decode_kernel<D, KB, VB, 1, X, true>(a, grid, stream);
  return grid.wide ? launch_decode_kernel<D, KB, VB, kWide, X, false>(a, grid, stream)
                   : launch_decode_narrow<D, KB, VB, X>(a, grid, stream);
}

}  // namespace kivi::cuda
