// SPDX-License-Identifier: Apache-2.0
#include "bench/client/openai_body.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <nlohmann/json.hpp>

#include "bench/client/text.h"

namespace kivi::load {

Result<Endpoint> parse_url(const std::string& url) {
  const Error bad{ErrorCode::invalid, "http://HOST[:PORT][/PATH] (no TLS)"};
  constexpr std::string_view kScheme = "http://";
  if (!url.starts_with(kScheme)) return bad;
  std::string_view rest = std::string_view(url).substr(kScheme.size());
  const size_t slash = std::min(rest.find('/'), rest.size());
  Endpoint endpoint{.path = std::string(rest.substr(slash))};
  while (endpoint.path.ends_with('/')) endpoint.path.pop_back();
  rest = rest.substr(0, slash);
  // The port's colon, not one of an IPv6 address in brackets.
  const size_t bracket = rest.rfind(']');
  const size_t colon = rest.find(':', bracket == std::string_view::npos ? 0 : bracket);
  endpoint.host = std::string(rest.substr(0, std::min(colon, rest.size())));
  endpoint.port = colon == std::string_view::npos ? "80" : std::string(rest.substr(colon + 1));
  if (endpoint.host.starts_with('[') && endpoint.host.ends_with(']'))
    endpoint.host = endpoint.host.substr(1, endpoint.host.size() - 2);
  const auto port = parse_number<int>(endpoint.port);
  if (endpoint.host.empty() || !port || *port < 1 || *port > 65535) return bad;
  return endpoint;
}

std::string completion_body(const LoadRequest& request, const RequestOptions& options) {
  using nlohmann::json;
  json body = {{"model", options.model},
               {"max_tokens", request.max_tokens},
               {"stream", true},
               {"stream_options", {{"include_usage", true}}}};
  if (options.chat)
    body["messages"] = json::array({{{"role", "user"}, {"content", request.text}}});
  else if (request.ids.empty())
    body["prompt"] = request.text;
  else
    body["prompt"] = request.ids;
  if (options.ignore_eos) body["ignore_eos"] = true;
  if (options.temperature) body["temperature"] = *options.temperature;
  if (!options.extra_body.empty()) body.update(json::parse(options.extra_body));
  return body.dump(-1, ' ', false, json::error_handler_t::replace);
}

std::string http_message(const Endpoint& endpoint, const std::string& path,
                         const std::string& api_key, const std::string& body) {
  const bool six = endpoint.host.find(':') != std::string::npos;  // an IPv6 address
  const std::string host = six ? fmt::format("[{}]", endpoint.host) : endpoint.host;
  std::string message =
      fmt::format("{} {}{} HTTP/1.1\r\nHost: {}:{}\r\nUser-Agent: kivi-bench\r\nAccept: */*\r\n",
                  body.empty() ? "GET" : "POST", endpoint.path, path, host, endpoint.port);
  if (!api_key.empty()) message += fmt::format("Authorization: Bearer {}\r\n", api_key);
  if (!body.empty())
    message += fmt::format("Content-Type: application/json\r\nContent-Length: {}\r\n", body.size());
  return message + "\r\n" + body;
}

}  // namespace kivi::load
