// SPDX-License-Identifier: Apache-2.0
// The error replies of the HTTP API (docs/api.md, section "Errors"): one place that knows which
// failure has which status, type and code.
#pragma once

#include <string>

#include "base/result.h"

namespace kivi {

// `code`, `type`: as written in the reply's JSON. retry_after: seconds, 0: no header.
struct ApiError {
  int status = 500;
  std::string type;
  std::string code;
  std::string message;
  std::string param = {};  // "": null
  int retry_after = 0;
};

ApiError to_api_error(const Error& error);

// {"error":{"message":…,"type":…,"param":…,"code":"…"}}, one line.
std::string error_json(const ApiError& error);

}  // namespace kivi
