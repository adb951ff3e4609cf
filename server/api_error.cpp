// SPDX-License-Identifier: Apache-2.0
#include "server/api_error.h"

#include "server/json_writer.h"

namespace kivi {

ApiError to_api_error(const Error& error) {
  const auto make = [&](int status, const char* type, const char* code) {
    return ApiError{status, type, code, error.message, error.field};
  };
  ApiError out;
  switch (error.code) {
    case ErrorCode::invalid:
      return make(400, "invalid_request_error", "invalid_value");
    case ErrorCode::context_length:
      return make(400, "invalid_request_error", "context_length_exceeded");
    case ErrorCode::not_found:
      return make(404, "invalid_request_error",
                  error.field == "model" ? "model_not_found" : "not_found");
    case ErrorCode::unsupported:
      // Not 501: to a gateway that would be a replica that fails.
      return make(400, "invalid_request_error", "unsupported_parameter");
    case ErrorCode::resource_exhausted:
      out = make(503, "overloaded_error", "queue_full");
      out.retry_after = 1;
      return out;
    case ErrorCode::unavailable:
      out = make(503, "unavailable_error", "unavailable");
      out.retry_after = 5;
      return out;
    case ErrorCode::deadline:
      return make(408, "timeout_error", "deadline_exceeded");
    case ErrorCode::cancelled:
      return make(499, "cancelled_error", "client_closed_request");
    case ErrorCode::internal:
      break;
  }
  return make(500, "server_error", "internal_error");
}

std::string error_json(const ApiError& error) {
  std::string out = "{\"error\":{\"message\":";
  append_json_string(out, error.message);
  out += ",\"type\":";
  append_json_string(out, error.type);
  out += ",\"param\":";
  if (error.param.empty())
    out += "null";
  else
    append_json_string(out, error.param);
  out += ",\"code\":";
  append_json_string(out, error.code);
  out += "}}";
  return out;
}

}  // namespace kivi
