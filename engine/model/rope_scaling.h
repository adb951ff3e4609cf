// SPDX-License-Identifier: Apache-2.0
// Rotary embeddings: what config.json says about them, and the frequencies that follow. The rules
// of scaling are those of Transformers' modeling_rope_utils.
#pragma once

#include <vector>

#include "base/json_file.h"
#include "engine/model/decoder_spec.h"

namespace kivi {

// The longest context that a config may name, tokens: more than any published model's.
inline constexpr int kMaxPositions = 1 << 24;

// The rotary embedding, wherever a config of either generation keeps it (rope_parameters, or
// rope_theta with rope_scaling): needs spec.head_dim and spec.max_positions, sets spec.rope and
// spec.max_positions_scaled. Mistakes are recorded in the reader; a kind of scaling that is not
// known is one (unsupported).
void read_rope(JsonReader& config, DecoderSpec& spec);

// Sets the divisors for an engine whose sequences have at most `max_model_len` tokens (longrope;
// else nothing changes). All keys of a store are turned alike, so this cannot depend on the
// sequence.
void fit_context(RopeSpec& rope, int max_model_len);

// [rotary_dim / 2]: theta^(-2 i / rotary_dim), scaled as `rope` says (dynamic: as for a sequence
// inside of the trained context).
std::vector<float> inverse_frequencies(const RopeSpec& rope);

}  // namespace kivi
