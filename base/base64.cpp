// SPDX-License-Identifier: Apache-2.0
#include "base/base64.h"

#include <algorithm>

namespace kivi {

void append_base64(std::string& out, std::span<const uint8_t> bytes) {
  constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  out.reserve(out.size() + (bytes.size() + 2) / 3 * 4 + 2);
  for (size_t i = 0; i < bytes.size(); i += 3) {
    const size_t count = std::min<size_t>(3, bytes.size() - i);
    uint32_t bits = 0;
    for (size_t j = 0; j < 3; ++j) bits = (bits << 8) | (j < count ? bytes[i + j] : 0u);
    for (size_t j = 0; j < 4; ++j) out += j <= count ? kDigits[(bits >> (18 - 6 * j)) & 63] : '=';
  }
}

}  // namespace kivi
