// SPDX-License-Identifier: Apache-2.0
// PureTokens: the tokens of a vocabulary whose bytes are all of some kinds (letters, say), apart
// from the others. A state that takes any run of such bytes takes all of these tokens, and a walk
// need not visit them. Immutable.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/grammar/token_trie.h"

namespace kivi::grammar {

class PureTokens {
 public:
  static constexpr int kBytesMax = 32;

  // `tokens[id]`: its bytes. `sorted`: all ids in the order of their bytes. `kinds`: as byte_kind,
  // a bit a kind. `words`: of a mask.
  PureTokens(std::span<const std::string> tokens, std::span<const int32_t> sorted, uint8_t kinds,
             int words);

  // Those of at most `bytes` bytes. 0 <= bytes <= kBytesMax.
  const std::vector<uint32_t>& mask(int bytes) const { return masks_[size_t(bytes)]; }
  // All tokens but the pure ones of at most kBytesMax bytes.
  const TokenTrie& others() const { return others_; }

 private:
  std::vector<std::vector<uint32_t>> masks_;
  TokenTrie others_;
};

}  // namespace kivi::grammar
