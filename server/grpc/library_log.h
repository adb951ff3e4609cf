// SPDX-License-Identifier: Apache-2.0
// The log lines of gRPC and Protobuf.
#pragma once

namespace kivi {

// Sends the libraries' own lines, which they would write to standard error, through spdlog's
// default logger. Peers cause many of them, so no more than ten a second are kept, and a later line
// says how many were not. Call once, before the libraries are used by other threads.
void redirect_library_logs();

}  // namespace kivi
