// SPDX-License-Identifier: Apache-2.0
// Request ids of both front ends. They appear in log lines, headers, metadata and replies.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace kivi {

inline constexpr size_t kMaxRequestIdBytes = 128;

// Makes a new id: 32 hexadecimal digits from the system's random source.
std::string make_request_id();

// Returns whether an id that a client chose may be echoed and logged: it has 1 to
// kMaxRequestIdBytes printable ASCII characters and no space.
bool usable_request_id(std::string_view id);

}  // namespace kivi
