// SPDX-License-Identifier: Apache-2.0
#include "server/request_id.h"

#include <fmt/format.h>
#include <openssl/rand.h>

#include <algorithm>
#include <array>

#include "base/verify.h"

namespace kivi {

std::string make_request_id() {
  std::array<unsigned char, 16> bytes;
  const int made = RAND_bytes(bytes.data(), int(bytes.size()));
  KIVI_VERIFY(made == 1);
  return fmt::format("{:02x}", fmt::join(bytes, ""));
}

bool usable_request_id(std::string_view id) {
  return !id.empty() && id.size() <= kMaxRequestIdBytes &&
         std::ranges::all_of(id, [](char c) { return c > ' ' && c < 0x7f; });
}

}  // namespace kivi
