// SPDX-License-Identifier: Apache-2.0
#include "server/api_error.h"

#include "server/json_writer.h"

namespace kivi {
namespace {

const ErrorKind& kind_of(const Error& error) {
  switch (error.code) {
    case ErrorCode::invalid:
      return kInvalidValue;
    case ErrorCode::context_length:
      return kContextLength;
    case ErrorCode::not_found:
      return error.field == "model" ? kModelNotFound : kNotFound;
    case ErrorCode::unsupported:
      // Not 501: gateways take that for a replica that fails.
      return kUnsupportedParameter;
    case ErrorCode::resource_exhausted:
      return kQueueFull;
    case ErrorCode::unavailable:
      return kUnavailable;
    case ErrorCode::deadline:
      return kDeadlineExceeded;
    case ErrorCode::cancelled:
      return kClientClosed;
    case ErrorCode::internal:
      break;
  }
  return kInternalError;
}

}  // namespace

ApiError to_api_error(const Error& error) { return {kind_of(error), error.message, error.field}; }

std::string error_json(const ApiError& error) {
  std::string out = "{\"error\":{\"message\":";
  append_json_string(out, error.message);
  out += ",\"type\":";
  append_json_string(out, error.kind.type);
  out += ",\"param\":";
  if (error.param.empty())
    out += "null";
  else
    append_json_string(out, error.param);
  out += ",\"code\":";
  append_json_string(out, error.kind.code);
  out += "}}";
  return out;
}

}  // namespace kivi
