// SPDX-License-Identifier: Apache-2.0
// An HTTP request as handlers see it, and a whole reply. Plain data without sockets.
#pragma once

#include <ctime>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/request.h"
#include "server/api_error.h"
#include "server/rate_limit.h"
#include "server/trace_context.h"

namespace kivi {

struct HttpRequest {
  std::string method;        // "GET", "POST", ...
  std::string path;          // without the query; percent-decoded
  std::string handler;       // the route's pattern, for metrics; "other" where none matched
  std::string body;          // whole, within the body limit
  std::string content_type;  // as sent; "" if absent
  std::string content_encoding;
  std::string authorization;
  std::string host;  // of the target where it has one, else the Host field; "" if absent
  std::string origin;
  std::string sec_fetch_site;
  std::string preflight_headers;  // Access-Control-Request-Headers
  std::string tenant;             // tenant.h
  RateLimiter::Permit permit;     // of a completion that was admitted, until the next request
  TraceContext trace;             // of the header traceparent
  std::string objective;          // gateway.h; "" if absent or not printable
  std::string fairness_id;        // the same
  std::string request_id;         // X-Request-Id as sent where it is usable, else made
  Clock::time_point arrival;
  bool http_1_1 = true;  // false: 1.0, no chunked coding
  bool keep_alive = true;
  bool head = false;  // a HEAD request: `method` is GET, the reply goes without its body
};

struct HttpReply {
  int status = 200;
  std::string body;
  std::string content_type = "application/json";
  std::vector<std::pair<std::string, std::string>> headers;
  std::optional<ApiError> error;  // what `body` says, for dialects that say it in another way
};

HttpReply json_reply(std::string body);
// Status, body and headers (Retry-After, x-should-retry, WWW-Authenticate).
HttpReply error_reply(const ApiError& error);
HttpReply error_reply(const Error& error);

// A time in the form of the header Date, in whole seconds since 1970, which is the same in every
// locale: "Sun, 06 Nov 1994 08:49:37 GMT" (RFC 9110, 5.6.7).
std::string http_date(std::time_t seconds);

// Returns status line, headers and the empty line, without the body. `framing` is the header that
// frames the body ("Content-Length: 12\r\n", "Transfer-Encoding: chunked\r\n", or nothing).
std::string reply_head(const HttpRequest& request, const HttpReply& reply, std::string_view framing,
                       bool keep_alive, const std::vector<std::string>& allowed_origins);

// Decodes "%2F" to "/". A broken escape stays as it is.
std::string percent_decode(std::string_view text);

}  // namespace kivi
