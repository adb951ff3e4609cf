// SPDX-License-Identifier: Apache-2.0
// The file of --kv-layer-bits: how many bits the codes of each layer's keys and values have
// (docs/design/kv-format.md, section 12). `kivi tune` writes such files.
#pragma once

#include <string>

#include "base/result.h"
#include "engine/config.h"
#include "kernels/kv_page.h"

namespace kivi {

// Parses the text of such a file for a model of `layers` layers. `file` is its name for errors,
// which have the field kv_layer_bits.
Result<KvLayerBits> parse_kv_layer_bits(const std::string& text, const std::string& file,
                                        int layers);

// Returns the text of a file that holds this table: an object with the lists "key_bits" and
// "value_bits", one number a layer.
std::string kv_layer_bits_text(const KvLayerBits& bits);

// Returns the store's layout as the settings say: the format of kv_format_of, and the table of
// kv_layer_bits. A table whose layers are all alike becomes the plain format that it amounts to.
// Errors: those of kv_format_of; a file that cannot be read or is no table for this model, and a
// table upon fp16 or fp8 (field kv_layer_bits).
Result<KvLayout> kv_layout_of(const EngineConfig& config, const KvShape& shape, int query_heads);

}  // namespace kivi
