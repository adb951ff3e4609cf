// SPDX-License-Identifier: Apache-2.0
// Reads hexadecimal digits.
#pragma once

namespace kivi {

// Returns the value of a hexadecimal digit in either case, or -1 if `c` is none.
constexpr int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

}  // namespace kivi
