// SPDX-License-Identifier: Apache-2.0
#include "engine/serving/device.h"

namespace kivi {

Result<std::unique_ptr<Backend>> make_backend(const EngineConfig& config) {
  if (config.device != "cpu") {
    Result<std::unique_ptr<Backend>> cuda = make_cuda_backend(0);
    if (cuda.ok()) return cuda;
    if (config.device == "cuda") {
      Error error = cuda.error();
      error.field = "device";
      return error;
    }
  }
  return make_cpu_backend(config.threads);
}

Result<DType> weight_dtype(const EngineConfig& config, DType checkpoint, const DeviceInfo& device) {
  DType dtype = checkpoint;
  if (config.dtype == "float32") dtype = DType::f32;
  if (config.dtype == "float16") dtype = DType::f16;
  if (config.dtype == "bfloat16") dtype = DType::bf16;
  if (device.kind == "cpu" || dtype != DType::f32) return dtype;
  if (config.dtype == "auto") return DType::f16;
  return Error{ErrorCode::unsupported,
               "dtype is float32, must be float16 or bfloat16 on a CUDA device", "dtype"};
}

}  // namespace kivi
