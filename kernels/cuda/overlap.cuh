// Kernels that start while the one before them in the stream still runs (programmatic dependent
// launch, Hopper and newer; elsewhere all of this is an ordinary launch).
//
// A kernel launched by launch_overlapped may do, before wait_for_previous(), only what no kernel of
// a step writes: read weights and the step's plan, set up shared memory. Everything else, stores
// included, comes after. Every thread that reads or writes such memory calls it. Since each kernel
// of a chain waits for the whole of the one before it, what is two launches back is done as well.
#pragma once

#include <cuda_runtime.h>

namespace kivi::cuda {

// Returns when the kernel before this one in the stream has ended and its writes can be seen. From
// then on the blocks of the kernel after this one take what room there is (and wait in turn), so
// that no more than two kernels of a chain are under way.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// kernel<<<grid, block, shared_bytes, stream>>>(arguments...), overlapping where the device can.
template <class... P, class... A>
cudaError_t launch_overlapped(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                              cudaStream_t stream, A... arguments) {
  int device = 0, major = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  // Kernels are on a multiprocessor together only if they divide its memory alike; decode attention
  // needs all of it as shared memory.
  attributes[1].id = cudaLaunchAttributePreferredSharedMemoryCarveout;
  attributes[1].val.sharedMemCarveout = cudaSharedmemCarveoutMaxShared;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = major >= 9 ? 2 : 0;
  return cudaLaunchKernelEx(&config, kernel, P(arguments)...);
}

}  // namespace kivi::cuda
