// Which device computes, and in what type its weights are.
#pragma once

#include <memory>

#include "engine/config.h"
#include "kernels/backend.h"

namespace kivi {

// EngineConfig::device: auto is CUDA where it is built and a device is present. Error: field
// "device", where cuda is asked for and not there.
Result<std::unique_ptr<Backend>> make_backend(const EngineConfig& config);

// EngineConfig::dtype. auto: the checkpoint's; f32 checkpoints become f16 on CUDA, which has no f32
// weights (error unsupported where they are asked for).
Result<DType> weight_dtype(const EngineConfig& config, DType checkpoint, const DeviceInfo& device);

}  // namespace kivi
