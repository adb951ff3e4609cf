// SPDX-License-Identifier: Apache-2.0
// Decides in which format each matrix of a model is kept on a device: the checkpoint's own, one
// that the user asked for (--quantization), or plain.
#pragma once

#include <string>

#include "base/result.h"
#include "engine/config.h"
#include "engine/model/model_config.h"
#include "engine/model/weights.h"
#include "kernels/backend.h"

namespace kivi {

struct WeightChoice {
  WeightFormats formats;
  WeightBytes bytes;
  int64_t product_scratch = 0;  // bytes, for products of up to `rows` rows
  // What became of formats that this device does not multiply, such as "210 Q4_1 matrices are
  // dequantized on this device". "" = none.
  std::string note;
};

// `rows`: of the largest product. Errors name quantization: a checkpoint that is quantized already,
// a format that the device does not multiply.
Result<WeightChoice> choose_weights(const EngineConfig& config, const Backend& backend,
                                    const ModelConfig& model, DType dtype, int64_t rows);

// Returns text such as "Q4_1 70.1 MiB, f16 0.1 MiB", the largest first.
std::string describe(const WeightBytes& bytes);

}  // namespace kivi
