// SPDX-License-Identifier: Apache-2.0
// DecoderWeights: a decoder's matrices on the device, in one allocation, with q|k|v and gate|up
// fused. They come from a checkpoint (checked and converted on the way) or from a random generator
// of the real shapes (load_format dummy).
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "engine/model/checkpoint.h"
#include "engine/model/decoder_spec.h"
#include "engine/model/families/registry.h"
#include "kernels/backend.h"

namespace kivi {

// Views into DecoderWeights::memory. A matrix is [out, in]; a missing bias or norm is empty.
struct LayerWeights {
  Tensor attention_norm, attention_norm_bias;  // [n]
  Tensor qkv, qkv_bias;                        // [(hq + 2 hk) d, n], [(hq + 2 hk) d]
  Tensor output, output_bias;                  // [n, hq d], [n]
  Tensor mlp_norm, mlp_norm_bias;              // [n]
  Tensor up, up_bias;                          // [2 f, n], [2 f] (gate, then up; f where not gated)
  Tensor down, down_bias;                      // [n, f], [n]
};

struct DecoderWeights {
  Buffer memory;
  Tensor embedding;  // [vocab, n]
  std::vector<LayerWeights> layers;
  Tensor final_norm, final_norm_bias;  // [n]
  Tensor head;                         // [vocab, n]; the embedding where tied
  Tensor inverse_frequencies;          // [rotary_dim / 2] f32
};

// Bytes done, bytes in all.
using WeightProgress = std::function<void(int64_t done, int64_t total)>;

// What DecoderWeights::memory takes, exactly, and how many numbers are parameters.
int64_t weight_bytes(const DecoderSpec& spec, DType dtype);
int64_t parameter_count(const DecoderSpec& spec);

// Uploads the checkpoint's tensors as `dtype` (f32, f16 or bf16). Errors name the file and the
// tensor: missing ones, ones that the architecture does not use, wrong shapes (both are printed),
// dtypes that cannot be computed with.
Result<DecoderWeights> load_weights(Backend& backend, const DecoderSpec& spec,
                                    const TensorNames& names, const Checkpoint& checkpoint,
                                    DType dtype, const WeightProgress& progress);

// Random weights, the same on every run: norms are 1, biases 0, matrices uniform with variance
// 1 / columns, so that activations keep the size they have in a trained model.
Result<DecoderWeights> random_weights(Backend& backend, const DecoderSpec& spec, DType dtype,
                                      const WeightProgress& progress);

}  // namespace kivi
