// SPDX-License-Identifier: Apache-2.0
// Writes base64 (RFC 4648, with padding).
#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace kivi {

void append_base64(std::string& out, std::span<const uint8_t> bytes);

}  // namespace kivi
