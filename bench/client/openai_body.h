// SPDX-License-Identifier: Apache-2.0
// Requests of OpenAI's protocol, and where they go.
#pragma once

#include <string>

#include "base/result.h"
#include "bench/client/client.h"
#include "bench/client/workload.h"

namespace kivi::load {

struct Endpoint {
  std::string host;
  std::string port;
  std::string path;  // "" or a beginning of all paths: "/proxy"
};

// "http://127.0.0.1:8000", with a path where the API is not at the root. Error: what was expected.
Result<Endpoint> parse_url(const std::string& url);

// The JSON of a streamed completion, or of a chat.
std::string completion_body(const LoadRequest& request, const RequestOptions& options);

// Request line, headers and body. `body` empty: a GET.
std::string http_message(const Endpoint& endpoint, const std::string& path,
                         const std::string& api_key, const std::string& body);

}  // namespace kivi::load
