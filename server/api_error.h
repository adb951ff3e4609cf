// SPDX-License-Identifier: Apache-2.0
// The errors of both front ends (docs/api.md, section "Errors"). One table says which failure has
// which status, type and code in HTTP and in gRPC, and when trying again makes sense.
#pragma once

#include <string>

#include "base/result.h"

namespace kivi {

// Status codes of gRPC (google.rpc.Code). Rooms without gRPC name them too.
enum class RpcStatus {
  cancelled = 1,
  unknown = 2,
  invalid_argument = 3,
  deadline_exceeded = 4,
  not_found = 5,
  permission_denied = 7,
  resource_exhausted = 8,
  out_of_range = 11,
  unimplemented = 12,
  internal = 13,
  unavailable = 14,
  unauthenticated = 16,
};

struct ErrorKind {
  const char* code;  // in the replies of both front ends
  const char* type;  // in those of HTTP
  int http;
  RpcStatus rpc;
  int retry_after = 0;       // seconds; 0: no advice
  bool should_retry = true;  // false: the header x-should-retry: false goes out
};

// clang-format off
inline constexpr ErrorKind
    kInvalidValue{"invalid_value", "invalid_request_error", 400, RpcStatus::invalid_argument},
    kUnsupportedParameter{"unsupported_parameter", "invalid_request_error", 400, RpcStatus::unimplemented},
    kContextLength{"context_length_exceeded", "invalid_request_error", 400, RpcStatus::out_of_range},
    kMalformedRequest{"malformed_request", "invalid_request_error", 400, RpcStatus::invalid_argument},
    kInvalidApiKey{"invalid_api_key", "authentication_error", 401, RpcStatus::unauthenticated},
    kHostNotAllowed{"host_not_allowed", "invalid_request_error", 403, RpcStatus::permission_denied},
    kOriginNotAllowed{"origin_not_allowed", "invalid_request_error", 403, RpcStatus::permission_denied},
    kNotFound{"not_found", "invalid_request_error", 404, RpcStatus::not_found},
    kModelNotFound{"model_not_found", "invalid_request_error", 404, RpcStatus::not_found},
    kMethodNotAllowed{"method_not_allowed", "invalid_request_error", 405, RpcStatus::unimplemented},
    kRequestTimeout{"request_timeout", "timeout_error", 408, RpcStatus::deadline_exceeded},
    kDeadlineExceeded{"deadline_exceeded", "timeout_error", 408, RpcStatus::deadline_exceeded},
    kBodyTooLarge{"body_too_large", "invalid_request_error", 413, RpcStatus::resource_exhausted},
    kUnsupportedMediaType{"unsupported_media_type", "invalid_request_error", 415, RpcStatus::invalid_argument},
    kExpectationFailed{"expectation_failed", "invalid_request_error", 417, RpcStatus::invalid_argument},
    kRateLimited{"rate_limit_exceeded", "rate_limit_error", 429, RpcStatus::resource_exhausted},
    kHeadersTooLarge{"headers_too_large", "invalid_request_error", 431, RpcStatus::resource_exhausted},
    kClientClosed{"client_closed_request", "cancelled_error", 499, RpcStatus::cancelled},
    kInternalError{"internal_error", "server_error", 500, RpcStatus::internal},
    kNotImplemented{"not_implemented", "not_implemented", 501, RpcStatus::unimplemented, 0, false},
    kQueueFull{"queue_full", "overloaded_error", 503, RpcStatus::resource_exhausted, 1},
    kTooManyConnections{"too_many_connections", "overloaded_error", 503, RpcStatus::resource_exhausted, 1},
    kTooManyBodyBytes{"too_many_body_bytes", "overloaded_error", 503, RpcStatus::resource_exhausted, 1},
    kOutOfMemory{"out_of_memory", "overloaded_error", 503, RpcStatus::resource_exhausted, 5},
    kLoading{"loading", "unavailable_error", 503, RpcStatus::unavailable, 5},
    kDraining{"draining", "unavailable_error", 503, RpcStatus::unavailable, 5},
    kGrpcUnreachable{"grpc_unreachable", "unavailable_error", 503, RpcStatus::unavailable, 5},
    kUnavailable{"unavailable", "unavailable_error", 503, RpcStatus::unavailable, 5};
// clang-format on

struct ApiError {
  ErrorKind kind = kInternalError;
  std::string message;
  std::string param = {};              // the field at fault; "": none
  int retry_after = kind.retry_after;  // seconds
};

ApiError to_api_error(const Error& error);

// {"error":{"message":…,"type":…,"param":…,"code":"…"}}, one line.
std::string error_json(const ApiError& error);

}  // namespace kivi
