// SPDX-License-Identifier: Apache-2.0
#include "engine/grammar/pure_tokens.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "engine/grammar/token_bits.h"

namespace kivi::grammar {

PureTokens::PureTokens(std::span<const std::string> tokens, std::span<const int32_t> sorted,
                       uint8_t kinds, int words)
    : masks_(kBytesMax + 1, std::vector<uint32_t>(size_t(words))) {
  std::vector<std::pair<std::string_view, int32_t>> others;
  for (const int32_t id : sorted) {
    const std::string_view token = tokens[size_t(id)];
    if (token.empty()) continue;
    const bool pure = token.size() <= size_t(kBytesMax) && std::ranges::all_of(token, [&](char c) {
                        return (kinds >> byte_kind(uint8_t(c)) & 1) != 0;
                      });
    if (pure)
      set_bit(masks_[token.size()], id);
    else
      others.emplace_back(token, id);
  }
  for (size_t n = 1; n < masks_.size(); ++n)
    for (size_t word = 0; word < masks_[n].size(); ++word) masks_[n][word] |= masks_[n - 1][word];
  others_ = TokenTrie(std::move(others));
}

}  // namespace kivi::grammar
