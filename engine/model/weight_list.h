// SPDX-License-Identifier: Apache-2.0
// WeightList names every tensor of a decoder in a fixed order: its shape, the tensors of a
// checkpoint that are stacked in it, and where its view goes. Loading, random weights and the sizes
// in a memory plan all follow it.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "engine/model/decoder_spec.h"
#include "engine/model/families/registry.h"
#include "kernels/weight.h"

namespace kivi {

struct DecoderWeights;
struct LayerWeights;
struct WeightMatrix;

// The formats of quantized matrices, by the names of their tensors ("model.layers.0.mlp.up_proj.
// weight"). A name that is absent is plain.
using WeightFormats = std::map<std::string, WeightFormat>;

enum class WeightUse { matrix, norm, bias };

// A tensor of the checkpoint and the rows it gives.
struct WeightPart {
  std::string name;
  int64_t rows = 0;
  bool rotary_pairs = false;  // TensorNames::rotary_pairs
};

// What a tensor or matrix is made of.
struct WeightItem {
  Tensor* vector = nullptr;        // where its view goes: a norm or a bias,
  WeightMatrix* matrix = nullptr;  // or a matrix
  std::vector<WeightPart> parts;
  int64_t columns = 0;  // 0: a vector
  WeightUse use = WeightUse::matrix;
  QkvOrder order = QkvOrder::heads;  // of its rows in the checkpoint
  // Values are stored rotated, so attention's output is. This matrix undoes it: its columns are
  // multiplied by the Hadamard matrix, head by head. A quantized one multiplies x instead.
  bool rotated = false;

  int64_t rows() const;
  int64_t row_size() const { return columns == 0 ? 1 : columns; }
  int64_t size() const { return rows() * row_size(); }
};

// Parts of an item that lie in one Weight, because they have one format.
struct WeightRun {
  size_t first = 0, count = 0;  // parts
  int64_t rows = 0;
  WeightFormat format;
};

class WeightList {
 public:
  // Sizes `weights.layers`. Views go to `weights`, which must outlive the list.
  WeightList(const DecoderSpec& spec, const TensorNames& names, DecoderWeights& weights);

  const std::vector<WeightItem>& items() const { return items_; }

 private:
  void add_layer(LayerWeights& layer, int index);
  void matrix(WeightMatrix* target, const std::vector<WeightPart>& parts, int64_t columns,
              QkvOrder order = QkvOrder::heads);
  void linear(WeightMatrix* target, Tensor* bias, const std::vector<WeightPart>& parts,
              int64_t columns, QkvOrder order = QkvOrder::heads);
  void norm(Tensor* weight, Tensor* bias, const std::string& name);
  void vector(Tensor* target, std::vector<WeightPart> parts, WeightUse use,
              QkvOrder order = QkvOrder::heads);

  const DecoderSpec& spec_;
  const TensorNames& names_;
  std::vector<WeightItem> items_;
};

// Divides an item's parts into runs. A run ends where the format changes, where each part has a
// column order of its own, or where rows of a format in tiles do not fill a tile.
std::vector<WeightRun> runs_of(const WeightItem& item, const WeightFormats& formats);

// The checkpoint's row of a part that is row `row` of ours (QkvOrder, TensorNames::rotary_pairs).
int64_t source_row(const DecoderSpec& spec, const WeightItem& item, const WeightPart& part,
                   int64_t row);

// Names of a decoder that has no checkpoint. Sizes do not depend on names, only on how many
// matrices q|k|v and gate|up are split into.
TensorNames any_names(const DecoderSpec& spec);

}  // namespace kivi
