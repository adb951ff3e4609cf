// SPDX-License-Identifier: Apache-2.0
// Tenants: whom the tokens of a request are counted for, by the scheduler and by the rate limits.
// A tenant is an API key. Without keys it is the client's address.
#pragma once

#include <string>
#include <string_view>

namespace kivi {

// The tenant of a valid `authorization` ("Bearer KEY"). The key cannot be read from it.
std::string tenant_of_key(std::string_view authorization);

// The tenant of an IP address without brackets. An IPv6 address counts by its /64 network, because
// one host has all addresses of such a network. An IPv4 address inside IPv6 counts as IPv4. A text
// that is no address is taken as it is.
std::string tenant_of_address(std::string_view address);

}  // namespace kivi
