// SPDX-License-Identifier: Apache-2.0
// Kernels that start while the one before them in the stream still runs (programmatic dependent
// launch, Hopper and newer; elsewhere all of this is an ordinary launch).
//
// A kernel launched by launch_overlapped may do, before wait_for_previous(), only what no kernel of
// a step writes: read weights and the step's plan, set up shared memory. Everything else, stores
// included, comes after. Every thread that reads or writes such memory calls it. Since each kernel
// of a chain waits for the whole of the one before it, what is two launches back is done as well.
// One that waits before it calls let_next_start() has the next one find all that is two launches
// back from the start (attend_shared), if that reads it from the L2 cache.
#pragma once

#include <cuda_runtime.h>

namespace kivi::cuda {

// Returns true if the code that runs on this device was compiled for Hopper or newer. A newer
// device may run code of an older architecture. That code has none of the instructions below, so it
// must not be launched as if it waited.
bool runs_hopper_code();

// Returns when the kernel before this one in the stream has ended and its writes can be seen.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel's blocks take what room there is as soon as every block of this kernel has
// called it; it still waits for this kernel's end before it touches what this kernel writes.
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Lets a block of the kernel have `shared_bytes` of dynamic shared memory, and asks a
// multiprocessor to have as much shared memory as it can while the kernel runs.
template <class... P>
cudaError_t prefer_shared_memory(void (*kernel)(P...), int shared_bytes) {
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (error != cudaSuccess) return error;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                              int(cudaSharedmemCarveoutMaxShared));
}

// kernel<<<grid, block, shared_bytes, stream>>>(arguments...), overlapping where the code can.
template <class... P, class... A>
cudaError_t launch_overlapped(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                              cudaStream_t stream, A... arguments) {
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = runs_hopper_code() ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, P(arguments)...);
}

}  // namespace kivi::cuda
