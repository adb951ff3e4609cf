// SPDX-License-Identifier: Apache-2.0
#include "server/tenant.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

#include "server/auth.h"

namespace kivi {

std::string tenant_of_key(std::string_view authorization) {
  // The scheme is up to the first blank; blanks before the key do not belong to it.
  const size_t blank = authorization.find(' ');
  std::string_view key =
      blank == std::string_view::npos ? std::string_view() : authorization.substr(blank);
  key.remove_prefix(std::min(key.find_first_not_of(' '), key.size()));
  return fmt::format("key:{:016x}", key_id(key));
}

std::string tenant_of_address(std::string_view address) {
  const std::string text(address.substr(0, address.find('%')));  // without the zone
  in6_addr v6;
  if (inet_pton(AF_INET6, text.c_str(), &v6) == 1) {
    std::array<char, INET6_ADDRSTRLEN> out;
    if (IN6_IS_ADDR_V4MAPPED(&v6)) {
      inet_ntop(AF_INET, v6.s6_addr + 12, out.data(), out.size());
      return fmt::format("address:{}", out.data());
    }
    std::memset(v6.s6_addr + 8, 0, 8);
    inet_ntop(AF_INET6, &v6, out.data(), out.size());
    return fmt::format("address:{}/64", out.data());
  }
  return fmt::format("address:{}", text);
}

}  // namespace kivi
