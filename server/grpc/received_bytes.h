// SPDX-License-Identifier: Apache-2.0
// How many bytes a TCP connection has received, as the kernel counts them.
#pragma once

#include <cstdint>

namespace kivi {

// 0 where the descriptor is no TCP socket. Any thread.
uint64_t received_bytes(int descriptor);

}  // namespace kivi
