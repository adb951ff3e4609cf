// SPDX-License-Identifier: Apache-2.0
// DecoderWeights: a decoder's matrices on the device, in one allocation, with q|k|v and gate|up
// stacked. They come from a checkpoint (checked and converted on the way) or from a random
// generator of the real shapes (load_format dummy).
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "engine/model/checkpoint.h"
#include "engine/model/decoder_spec.h"
#include "engine/model/families/registry.h"
#include "engine/model/weight_list.h"
#include "kernels/backend.h"

namespace kivi {

// A matrix [out, in]: one Weight, or several whose rows follow each other. A checkpoint may store
// in different formats what is one matrix here (Q4_K_M: q and k are Q4_K, v is Q6_K).
struct WeightMatrix {
  std::vector<Weight> parts;

  bool empty() const { return parts.empty(); }
  // The only part. The matrix must have no other.
  const Weight& whole() const;
  // The same, plain.
  const Tensor& plain() const;
};

// Views into DecoderWeights::memory. A missing bias or norm is empty.
struct LayerWeights {
  Tensor attention_norm, attention_norm_bias;  // [n]
  WeightMatrix qkv;                            // [(hq + 2 hk) d, n]
  Tensor qkv_bias;                             // [(hq + 2 hk) d]
  Tensor q_norm, k_norm;                       // [d]
  WeightMatrix output;                         // [n, hq d]
  Tensor output_bias;                          // [n]
  Tensor mlp_norm, mlp_norm_bias;              // [n]
  WeightMatrix up;                             // [2 f, n] (gate, then up; [f, n] where not gated)
  Tensor up_bias;                              // [2 f] or [f]
  WeightMatrix down;                           // [n, f]
  Tensor down_bias;                            // [n]
};

struct DecoderWeights {
  Buffer memory;
  WeightMatrix embedding;  // [vocab, n], one part
  std::vector<LayerWeights> layers;
  Tensor final_norm, final_norm_bias;  // [n]
  WeightMatrix head;                   // [vocab, n], one part; the embedding where tied
  Tensor inverse_frequencies;          // [rotary_dim / 2] f32
};

// Bytes done, bytes in all.
using WeightProgress = std::function<void(int64_t done, int64_t total)>;

// What DecoderWeights::memory takes, exactly.
struct WeightBytes {
  int64_t total = 0;                         // with padding
  std::map<std::string, int64_t> by_format;  // of matrices and vectors, by name_of, without padding
};
// Plain numbers are `dtype`.
WeightBytes weight_bytes(const DecoderSpec& spec, const TensorNames& names, DType dtype,
                         const WeightFormats& formats);
// The same for a decoder whose numbers are all plain.
int64_t weight_bytes(const DecoderSpec& spec, DType dtype);
// The most scratch that a product of up to `rows` rows by one of a decoder's quantized matrices
// needs.
int64_t product_scratch_bytes(const Backend& backend, const DecoderSpec& spec,
                              const TensorNames& names, const WeightFormats& formats, int64_t rows);
// The layers' matrices, all in one format. Those that cannot be stored in it are left out, and so
// are the embedding and the output head.
WeightFormats layer_formats(const DecoderSpec& spec, const TensorNames& names,
                            const WeightFormat& format);
// How many numbers are parameters.
int64_t parameter_count(const DecoderSpec& spec);

// Uploads the checkpoint's tensors. Those in `formats` are kept in, or quantized to, the format
// that stands there (the backend multiplies it). Others become `dtype` (f32, f16 or bf16). Errors
// name the file and the tensor: missing ones, ones that the architecture does not use, wrong shapes
// (both are printed), dtypes that cannot be computed with.
Result<DecoderWeights> load_weights(Backend& backend, const DecoderSpec& spec,
                                    const TensorNames& names, const Checkpoint& checkpoint,
                                    DType dtype, const WeightProgress& progress,
                                    const WeightFormats& formats = {});

// Random weights, the same on every run: norms are 1, biases 0, matrices uniform with variance
// 1 / columns, so that activations keep the size they have in a trained model. Formats are int4 and
// e4m3. A quantized matrix has 256 different rows, which it repeats.
Result<DecoderWeights> random_weights(Backend& backend, const DecoderSpec& spec,
                                      const TensorNames& names, DType dtype,
                                      const WeightProgress& progress,
                                      const WeightFormats& formats = {});

}  // namespace kivi
