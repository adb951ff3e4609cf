// SPDX-License-Identifier: Apache-2.0
// What gRPC's status codes are called, for logs, metrics and reports: its own library does not say.
#pragma once

#include <grpcpp/support/status.h>

#include <cstddef>
#include <iterator>

namespace kivi {

// "OK", "INVALID_ARGUMENT", ...; "UNKNOWN" for a number that gRPC does not define.
inline const char* name_of(grpc::StatusCode code) {
  static constexpr const char* kNames[] = {"OK",
                                           "CANCELLED",
                                           "UNKNOWN",
                                           "INVALID_ARGUMENT",
                                           "DEADLINE_EXCEEDED",
                                           "NOT_FOUND",
                                           "ALREADY_EXISTS",
                                           "PERMISSION_DENIED",
                                           "RESOURCE_EXHAUSTED",
                                           "FAILED_PRECONDITION",
                                           "ABORTED",
                                           "OUT_OF_RANGE",
                                           "UNIMPLEMENTED",
                                           "INTERNAL",
                                           "UNAVAILABLE",
                                           "DATA_LOSS",
                                           "UNAUTHENTICATED"};
  return size_t(code) < std::size(kNames) ? kNames[code] : "UNKNOWN";
}

}  // namespace kivi
