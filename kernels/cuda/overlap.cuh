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

// What a launch may have beyond a grid; ignored before Hopper.
struct LaunchTraits {
  bool overlaps = true;
  unsigned cluster = 1;  // blocks
};

// kernel<<<grid, block, shared_bytes, stream>>>(arguments...), with `traits` where the device can.
template <class... P, class... A>
cudaError_t launch_with(LaunchTraits traits, void (*kernel)(P...), dim3 grid, dim3 block,
                        size_t shared_bytes, cudaStream_t stream, A... arguments) {
  int device = 0, major = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attributes[2]{};
  unsigned count = 0;
  if (major >= 9 && traits.overlaps) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (major >= 9 && traits.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count++].val.clusterDim = {traits.cluster, 1, 1};
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = count;
  return cudaLaunchKernelEx(&config, kernel, P(arguments)...);
}

template <class... P, class... A>
cudaError_t launch_overlapped(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                              cudaStream_t stream, A... arguments) {
  return launch_with({}, kernel, grid, block, shared_bytes, stream, arguments...);
}

}  // namespace kivi::cuda
