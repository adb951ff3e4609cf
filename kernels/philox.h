// SPDX-License-Identifier: Apache-2.0
// Philox4x32-10, the counter-based random numbers of the sampler (Salmon et al., "Parallel random
// numbers: as easy as 1, 2, 3", SC 2011). The noise of a token is a function of (seed, position,
// token id) and is the same on every device. So a seed gives the same text, whatever runs beside
// it.
#pragma once

#include <cstdint>

#include "kernels/half.h"

namespace kivi {

struct PhiloxBlock {
  uint32_t word[4];
};

inline constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u, kPhiloxMultiplier1 = 0xCD9E8D57u;
inline constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u, kPhiloxWeyl1 = 0xBB67AE85u;

KIVI_HOST_DEVICE constexpr PhiloxBlock philox4x32_10(PhiloxBlock counter, uint32_t key0,
                                                     uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(kPhiloxMultiplier0) * counter.word[0];
    const uint64_t p1 = uint64_t(kPhiloxMultiplier1) * counter.word[2];
    counter = {{uint32_t(p1 >> 32) ^ counter.word[1] ^ key0, uint32_t(p1),
                uint32_t(p0 >> 32) ^ counter.word[3] ^ key1, uint32_t(p0)}};
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
  return counter;
}

// Returns the random words of the tokens 4 b to 4 b + 3, where b = token_block. One Philox block
// serves four tokens.
KIVI_HOST_DEVICE constexpr PhiloxBlock sampler_words(uint64_t seed, int32_t position,
                                                     uint32_t token_block) {
  return philox4x32_10({{token_block, uint32_t(position), 0, 0}}, uint32_t(seed),
                       uint32_t(seed >> 32));
}

// Turns a random word into a number in (0, 1). It uses 23 bits and adds a half, so that the result
// is exact in fp32 and never 0 or 1. The Gumbel noise of a token is -log(-log(uniform)).
KIVI_HOST_DEVICE constexpr float uniform_of(uint32_t word) {
  return (float(word >> 9) + 0.5f) * 1.1920928955078125e-7f;  // 2^-23
}

KIVI_HOST_DEVICE constexpr float sampler_uniform(uint64_t seed, int32_t position, int32_t token) {
  return uniform_of(sampler_words(seed, position, uint32_t(token) / 4).word[uint32_t(token) % 4]);
}

// Known answer (Random123's test vectors): counter and key zero.
static_assert(philox4x32_10({{0, 0, 0, 0}}, 0, 0).word[0] == 0x6627e8d5u);

}  // namespace kivi
