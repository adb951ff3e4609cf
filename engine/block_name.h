// SPDX-License-Identifier: Apache-2.0
// BlockName names what a block of the prefix cache holds, for the tiers beyond the device: SHA-256
// over a secret, what the model and the format are, the salt, and all tokens up to the block's end.
// Whoever does not know the secret cannot tell from a name which tokens it stands for, and cannot
// make a name. Different contents have different names, but for a collision of SHA-256.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"

namespace kivi {

using BlockName = std::array<uint8_t, 32>;

// The bytes of `name`, which must outlive the view.
inline std::string_view name_view(const BlockName& name) {
  return {reinterpret_cast<const char*>(name.data()), name.size()};
}

struct BlockNameHash {
  size_t operator()(const BlockName& name) const {
    size_t hash = 0;
    std::memcpy(&hash, name.data(), sizeof hash);
    return hash;
  }
};

// Makes names. Any thread.
class BlockNamer {
 public:
  // `fingerprint` says what besides the tokens the bytes of a page depend on.
  BlockNamer(std::string_view secret, std::string_view fingerprint);

  // The name that a salt's first block has for its parent.
  BlockName root(std::string_view salt) const;
  BlockName next(const BlockName& parent, std::span<const int32_t> tokens) const;

 private:
  BlockName key_;
};

// SHA-256 of the parts, each with its length, so that no two lists of parts are alike.
BlockName sha256(std::span<const std::string_view> parts);
// 32 random bytes of the system.
std::string random_secret();

}  // namespace kivi
