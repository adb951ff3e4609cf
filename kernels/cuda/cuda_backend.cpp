// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/cuda_backend.h"

#include <fmt/core.h>

#include "kernels/cuda/kv_attend_decode.h"
#include "kernels/cuda/prefill_attend.h"

namespace kivi {
namespace {

CudaProperties read_properties(int device) {
  cudaDeviceProp p;
  KIVI_CUDA_VERIFY(cudaGetDeviceProperties(&p, device));
  return {device,  p.multiProcessorCount, int(p.sharedMemPerBlockOptin), p.major,
          p.minor, std::string(p.name)};
}

// Why no device was counted. Without a driver, CUDA's own words are of a driver that is too old.
std::string why_none(cudaError_t error) {
  int version = 0;
  if (cudaDriverGetVersion(&version) == cudaSuccess && version == 0)
    return "no NVIDIA driver is loaded; a container sees the host's by --gpus all";
  return error == cudaSuccess ? "the driver answers; check CUDA_VISIBLE_DEVICES"
                              : cudaGetErrorString(error);
}

}  // namespace

CudaBackend::CudaBackend(int device) : uploader_(device) {
  KIVI_CUDA_VERIFY(cudaSetDevice(device));
  properties_ = read_properties(device);
  stream_ = make_stream();
  decode_workspace_ = cuda::make_decode_workspace(properties_, stream_.get());
  tile_counters_ = make_device_memory(kTileCounters * sizeof(int));
  KIVI_CUDA_VERIFY(
      cudaMemsetAsync(tile_counters_.get(), 0, kTileCounters * sizeof(int), stream_.get()));
}

CudaBackend::~CudaBackend() { KIVI_CUDA_VERIFY(cudaStreamSynchronize(stream_.get())); }

DeviceInfo CudaBackend::info() const {
  size_t free = 0, total = 0;
  KIVI_CUDA_VERIFY(cudaMemGetInfo(&free, &total));
  return {properties_.name, "cuda", int64_t(total), int64_t(free)};
}

Status CudaBackend::check_shape(const KvShape& shape, int hidden) const {
  const auto refuse = [](const char* field, int value, const std::string& expected) {
    return Error{ErrorCode::unsupported,
                 fmt::format("{} is {}, must be {} on device cuda", field, value, expected), field};
  };
  if (!cuda::prefill_has_head_dim(shape.head_dim))
    return refuse("head_dim", shape.head_dim, "64, 80, 96, 128 or 256");
  if (shape.head_dim > 128 && properties_.shared_bytes_max < cuda::kWidePrefillShared)
    return refuse("head_dim", shape.head_dim,
                  fmt::format("64, 80, 96 or 128 on {} (256 needs {} bytes of shared memory)",
                              properties_.name, cuda::kWidePrefillShared));
  if (hidden % 8 != 0 || hidden > cuda::kNormWidthMax)
    return refuse("hidden_size", hidden,
                  fmt::format("a multiple of 8, at most {}", cuda::kNormWidthMax));
  return ok_status();
}

void CudaBackend::upload(void* device, const void* source, size_t bytes) {
  uploader_.upload(device, source, bytes, stream_.get());
}

void CudaBackend::download(void* target, const void* device, size_t bytes) {
  KIVI_CUDA_VERIFY(cudaMemcpyAsync(target, device, bytes, cudaMemcpyDeviceToHost, stream_.get()));
  KIVI_CUDA_VERIFY(cudaStreamSynchronize(stream_.get()));
}

void CudaBackend::fill_zero(void* device, size_t bytes) {
  KIVI_CUDA_VERIFY(cudaMemsetAsync(device, 0, bytes, stream_.get()));
}

void CudaBackend::copy(void* to, const void* from, size_t bytes) {
  KIVI_CUDA_VERIFY(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_.get()));
}

void CudaBackend::mark(int index) {
  Event& event = marks_.at(size_t(index));
  if (event == nullptr) event = make_timing_event();
  KIVI_CUDA_VERIFY(cudaEventRecord(event.get(), stream_.get()));
}

double CudaBackend::seconds_between(int from, int to) {
  const Event &begin = marks_.at(size_t(from)), &end = marks_.at(size_t(to));
  KIVI_VERIFY(begin != nullptr && end != nullptr);
  KIVI_CUDA_VERIFY(cudaEventSynchronize(end.get()));
  float milliseconds = 0;
  KIVI_CUDA_VERIFY(cudaEventElapsedTime(&milliseconds, begin.get(), end.get()));
  return double(milliseconds) * 1e-3;
}

void CudaBackend::synchronize() {
  copier_.synchronize();
  KIVI_CUDA_VERIFY(cudaStreamSynchronize(stream_.get()));
}

Result<HostMemory> CudaBackend::allocate_host(size_t bytes) {
  void* data = nullptr;
  const cudaError_t error = cudaMallocHost(&data, bytes);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return Error{ErrorCode::resource_exhausted,
                 fmt::format("the host has no {} bytes of page-locked memory left", bytes)};
  }
  KIVI_CUDA_VERIFY(error);
  return HostMemory(static_cast<std::byte*>(data),
                    [](std::byte* memory) { KIVI_CUDA_VERIFY(cudaFreeHost(memory)); });
}

uint64_t CudaBackend::copy_beside(std::span<const HostCopy> copies) {
  return copier_.enqueue(copies, stream_.get());
}

// Out of memory is an answer here, not a failure: the caller prints its plan.
Result<std::byte*> CudaBackend::do_allocate(size_t bytes) {
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, bytes);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return Error{ErrorCode::resource_exhausted,
                 fmt::format("{} has no {} bytes left", properties_.name, bytes)};
  }
  KIVI_CUDA_VERIFY(error);
  return static_cast<std::byte*>(data);
}

void CudaBackend::do_free(std::byte* data, size_t) { KIVI_CUDA_VERIFY(cudaFree(data)); }

Result<std::unique_ptr<Backend>> make_cuda_backend(int device) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || device < 0 || device >= count) {
    cudaGetLastError();
    return Error{ErrorCode::not_found,
                 count > 0 ? fmt::format("device cuda:{}: must be from 0 to {}", device, count - 1)
                           : fmt::format("device cuda:{}: no CUDA device is visible: {}", device,
                                         why_none(error)),
                 "device"};
  }
  const CudaProperties properties = read_properties(device);
  if (properties.major < 8)
    return Error{ErrorCode::unsupported,
                 fmt::format("device cuda:{}: {} has compute capability {}.{}, must be >= 8.0",
                             device, properties.name, properties.major, properties.minor),
                 "device"};
  return std::unique_ptr<Backend>(std::make_unique<CudaBackend>(device));
}

}  // namespace kivi
