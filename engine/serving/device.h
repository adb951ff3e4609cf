// SPDX-License-Identifier: Apache-2.0
// Chooses the device that computes and the type of its weights.
#pragma once

#include <memory>

#include "engine/config.h"
#include "kernels/backend.h"

namespace kivi {

// Makes the backend of EngineConfig::device. `auto` is CUDA if it was built and a device is
// present. Returns an error with field "device" if the config asks for cuda and there is none.
Result<std::unique_ptr<Backend>> make_backend(const EngineConfig& config);

// Returns the type of EngineConfig::dtype. `auto` is the checkpoint's type. CUDA has no f32
// weights: f32 checkpoints become f16 there, and asking for f32 is an error (`unsupported`).
Result<DType> weight_dtype(const EngineConfig& config, DType checkpoint, const DeviceInfo& device);

}  // namespace kivi
