// SPDX-License-Identifier: Apache-2.0
// The bits of each layer's keys and values, where the layers of a store differ
// (docs/design/kv-format.md, section 12).
#pragma once

#include <cstdint>

#include "kernels/half.h"

namespace kivi {

// A table with one row a layer. Plain data of a fixed size, because KvLayout holds one and goes to
// kernels by value. A layer's codes have 2 or 4 bits, so the set of layers with 4 bits is enough.
struct KvLayerBits {
  static constexpr int kLayersMax = 256;

  int layers = 0;  // 0: no table, every layer has the bits of the store's format
  uint32_t wide_keys[kLayersMax / 32] = {};
  uint32_t wide_values[kLayersMax / 32] = {};

  KIVI_HOST_DEVICE constexpr bool empty() const { return layers == 0; }

  // Appends the row of the next layer. layers < kLayersMax; bits are 2 or 4.
  constexpr void add(int key_bits, int value_bits) {
    wide_keys[layers / 32] |= uint32_t(key_bits == 4) << (layers % 32);
    wide_values[layers / 32] |= uint32_t(value_bits == 4) << (layers % 32);
    ++layers;
  }

  constexpr int key_bits(int layer) const { return has(wide_keys, layer) ? 4 : 2; }
  constexpr int value_bits(int layer) const { return has(wide_values, layer) ? 4 : 2; }

  // Return how many of the layers [0, end) have keys (values) of 4 bits.
  constexpr int wide_keys_before(int end) const { return count(wide_keys, end); }
  constexpr int wide_values_before(int end) const { return count(wide_values, end); }

  // All layers have equal bits, so the table says no more than a format.
  constexpr bool uniform() const {
    const int keys = wide_keys_before(layers), values = wide_values_before(layers);
    return (keys == 0 || keys == layers) && (values == 0 || values == layers);
  }

  friend constexpr bool operator==(const KvLayerBits&, const KvLayerBits&) = default;

 private:
  static constexpr bool has(const uint32_t* set, int layer) {
    return (set[layer / 32] >> (layer % 32) & 1) != 0;
  }
  static constexpr int count(const uint32_t* set, int end) {
    int n = 0;
    for (int layer = 0; layer < end; ++layer) n += has(set, layer) ? 1 : 0;
    return n;
  }
};

}  // namespace kivi
