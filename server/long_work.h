// SPDX-License-Identifier: Apache-2.0
// Long work: parsing and tokenizing a long request, and compiling a grammar, which may take half a
// second. Both front ends do it on threads of their own, so that short requests do not wait behind
// it.
#pragma once

#include <algorithm>
#include <cstddef>

#include "server/server_config.h"

namespace kivi {

// A request of this many bytes is long. Parsing and tokenizing go at about 5 MB/s, so it takes some
// 10 ms.
inline constexpr size_t kLongRequestBytes = 48 << 10;

// Threads for long work. There is more than one, so that one long request does not hold up all
// others.
inline int long_work_threads(const ServerConfig& config) { return std::max(2, config.io_threads); }

}  // namespace kivi
