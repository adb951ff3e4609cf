// SPDX-License-Identifier: Apache-2.0
// Masks of tokens: bit id % 32 of word id / 32 says whether the token id is allowed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace kivi::grammar {

inline void set_bit(std::span<uint32_t> words, int32_t id) {
  words[size_t(id) / 32] |= 1u << (uint32_t(id) % 32);
}

inline void clear_bit(std::span<uint32_t> words, int32_t id) {
  words[size_t(id) / 32] &= ~(1u << (uint32_t(id) % 32));
}

}  // namespace kivi::grammar
