// SPDX-License-Identifier: Apache-2.0
#include "server/http/http_routes.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/ip/address.hpp>
#include <cctype>

#include "server/auth.h"
#include "server/gateway.h"
#include "server/json_writer.h"
#include "server/tenant.h"

namespace kivi {
namespace {

constexpr Route kRoutes[] = {
    {"/", "GET", Access::open, false, false, handle_playground},
    {"/playground.css", "GET", Access::open, false, false, handle_playground_css},
    {"/playground.js", "GET", Access::open, false, false, handle_playground_js},
    {"/docs", "GET", Access::open, false, false, handle_reference},
    {"/docs.js", "GET", Access::open, false, false, handle_reference_js},
    {"/openapi.json", "GET", Access::open, false, false, handle_openapi},
    {"/health", "GET", Access::open, false, false, handle_health},
    {"/health/ready", "GET", Access::open, false, false, handle_health},
    {"/health/live", "GET", Access::open, false, false, handle_live},
    {"/ping", "GET", Access::open, false, false, handle_health},
    {"/version", "GET", Access::open, false, false, handle_version},
    {"/metrics", "GET", Access::metrics, false, false, handle_metrics},
    {"/load", "GET", Access::key, true, false, handle_load},
    {"/server_info", "GET", Access::key, true, false, handle_server_info},
    {"/v1/models", "GET", Access::key, true, false, handle_models},
    {"/v1/models/*", "GET", Access::key, true, false, handle_model},
    {"/tokenizer_info", "GET", Access::key, true, false, handle_tokenizer_info},
    {"/v1/tokenizer_info", "GET", Access::key, true, false, handle_tokenizer_info},
    {"/tokenize", "POST", Access::key, true, false, nullptr, handle_tokenize},
    {"/v1/tokenize", "POST", Access::key, true, false, nullptr, handle_tokenize},
    {"/detokenize", "POST", Access::key, true, false, nullptr, handle_detokenize},
    {"/v1/detokenize", "POST", Access::key, true, false, nullptr, handle_detokenize},
    {"/v1/load_lora_adapter", "POST", Access::key, false, false, handle_lora},
    {"/v1/unload_lora_adapter", "POST", Access::key, false, false, handle_lora},
    {"/v1/completions", "POST", Access::key, true, true, nullptr, handle_completions},
    {"/v1/chat/completions", "POST", Access::key, true, true, nullptr, handle_chat_completions},
    {"/v1/embeddings", "POST", Access::key, true, true, nullptr, handle_embeddings},
    {"/score", "POST", Access::key, true, true, nullptr, handle_score},
    {"/v1/score", "POST", Access::key, true, true, nullptr, handle_score},
    {"/rerank", "POST", Access::key, true, true, nullptr, handle_rerank},
    {"/v1/rerank", "POST", Access::key, true, true, nullptr, handle_rerank},
    {"/v2/rerank", "POST", Access::key, true, true, nullptr, handle_rerank},
    {"/v1/completions/render", "POST", Access::key, true, false, nullptr,
     handle_completions_render},
    {"/v1/chat/completions/render", "POST", Access::key, true, false, nullptr, handle_chat_render},
    {"/v1/responses", "POST", Access::key, true, true, nullptr, handle_responses},
    {"/v1/messages", "POST", Access::key, true, true, nullptr, handle_messages, Dialect::anthropic},
    {"/v1/messages/count_tokens", "POST", Access::key, true, false, nullptr, handle_count_tokens,
     Dialect::anthropic},
};

HttpReply refuse(const ErrorKind& kind, std::string message) {
  return error_reply(ApiError{kind, std::move(message)});
}

HttpReply refuse_unavailable(HttpContext& context, const ErrorKind& kind, const char* message) {
  context.state.metrics().admission_rejected(kind.code);
  return refuse(kind, message);
}

// "application/json", with parameters or not. An absent type is none: a browser sends such a body
// for any page, without asking the server first.
bool is_json(std::string_view type) {
  type = type.substr(0, type.find(';'));
  while (!type.empty() && (type.back() == ' ' || type.back() == '\t')) type.remove_suffix(1);
  return std::ranges::equal(type, std::string_view("application/json"), [](char a, char b) {
    return std::tolower(static_cast<unsigned char>(a)) == b;
  });
}

std::string quoted_part(std::string_view text) {
  std::string out;
  append_json_string(out, text.substr(0, 200));
  return out;
}

// Known paths of other servers that this one does not have.
bool needs_other_heads(std::string_view path) {
  if (path.starts_with("/v1/")) path.remove_prefix(3);
  return path == "/pooling" || path == "/classify";
}

bool needs_key(const ServerConfig& config, const Route* route) {
  if (route == nullptr) return true;
  return route->access == Access::key ||
         (route->access == Access::metrics && config.metrics_require_key);
}

// "localhost:8000" -> "localhost", "[::1]:8000" -> "[::1]"; in lower case.
std::string host_name(std::string_view host) {
  if (const size_t user = host.rfind('@'); user != std::string_view::npos)
    host.remove_prefix(user + 1);
  const size_t bracket = host.find(']');
  const size_t colon = host.find(':', bracket == std::string_view::npos ? 0 : bracket);
  std::string name(host.substr(0, colon));
  if (!name.empty() && name.back() == '.') name.pop_back();
  std::ranges::transform(name, name.begin(), [](unsigned char c) { return std::tolower(c); });
  return name;
}

// An IP address as a Host names one: "127.0.0.1", "[::1]". No DNS server decides what it means.
bool is_address(std::string name) {
  if (name.size() > 2 && name.front() == '[' && name.back() == ']')
    name = name.substr(1, name.size() - 2);
  boost::system::error_code error;
  boost::asio::ip::make_address(name, error);
  return !error;
}

// On a loopback address a foreign name is a page's whose name server says 127.0.0.1 (DNS
// rebinding). Without a Host (HTTP/1.0) it is no browser.
bool host_allowed(const HttpContext& context, const HttpRequest& request) {
  const ServerConfig& config = context.state.config();
  if (!context.is_local || request.host.empty()) return true;
  const std::string name = host_name(request.host);
  if (name == "localhost" || name.ends_with(".localhost") || name == config.host ||
      is_address(name))
    return true;
  return std::ranges::any_of(config.allowed_hosts, [&](const std::string& allowed) {
    return allowed == "*" || host_name(allowed) == name;
  });
}

// Without keys, being reachable is all that a request needs: a page in its user's browser is. With
// keys the page would have to know one.
bool origin_allowed(HttpContext& context, const HttpRequest& request) {
  if (!context.state.keys().open()) return true;
  const auto& allowed = context.state.config().allowed_origins;
  if (std::ranges::find(allowed, "*") != allowed.end()) return true;
  if (request.origin.empty()) return request.sec_fetch_site != "cross-site";
  if (std::ranges::find(allowed, request.origin) != allowed.end()) return true;
  return request.origin == "http://" + request.host || request.origin == "https://" + request.host;
}

// The names of headers that a preflight asks for, as they were sent: OpenAI's clients in browsers
// send a dozen of their own (x-stainless-...). None of them is a secret. Anything but names, commas
// and blanks is not repeated.
std::string allowed_headers(const HttpRequest& request) {
  const std::string own = "Authorization, Content-Type, X-Request-Id";
  const std::string& asked = request.preflight_headers;
  constexpr size_t kBytesMax = 2048;
  const bool names = std::ranges::all_of(asked, [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_' || c == ',' ||
           c == ' ';
  });
  return asked.empty() || !names || asked.size() > kBytesMax ? own : own + ", " + asked;
}

HttpReply preflight_reply(const Route& route, const HttpRequest& request) {
  HttpReply reply;
  reply.status = 204;
  reply.content_type = "";
  reply.headers = {{"Allow", fmt::format("{}, OPTIONS", route.method)},
                   {"Access-Control-Allow-Methods", fmt::format("{}, OPTIONS", route.method)},
                   {"Access-Control-Allow-Headers", allowed_headers(request)},
                   {"Access-Control-Max-Age", "600"}};
  return reply;
}

}  // namespace

std::span<const Route> all_routes() { return kRoutes; }

const Route* find_route(std::string_view path) {
  for (const Route& route : kRoutes) {
    if (route.path.back() == '*') {
      const std::string_view prefix = route.path.substr(0, route.path.size() - 1);
      if (path.starts_with(prefix) && path.size() > prefix.size()) return &route;
    } else if (path == route.path) {
      return &route;
    }
  }
  return nullptr;
}

bool admit_request(HttpContext& context, HttpRequest& request, const Route*& route,
                   HttpReply& refusal, bool open_only) {
  const ServerConfig& config = context.state.config();
  route = find_route(request.path);
  request.handler = route == nullptr ? "other" : std::string(route->path);
  if (open_only && (route == nullptr || route->access == Access::key)) {
    context.state.metrics().admission_rejected("connections");
    refusal = refuse(kTooManyConnections, "all connections of --max-connections are in use");
    return false;
  }
  if (!host_allowed(context, request)) {
    refusal = refuse(kHostNotAllowed,
                     fmt::format("Host is {}, must be localhost, an IP address or a name given by "
                                 "--allowed-hosts",
                                 quoted_part(request.host)));
    return false;
  }
  // A preflight changes nothing, and is answered below.
  if (request.method != "OPTIONS" && !origin_allowed(context, request)) {
    refusal = refuse(
        kOriginNotAllowed,
        fmt::format("Origin is {} and Sec-Fetch-Site is {}: a page of another site must be allowed "
                    "by --allowed-origins, because this server has no API key",
                    quoted_part(request.origin), quoted_part(request.sec_fetch_site)));
    return false;
  }
  // A browser's preflight carries no key.
  if (request.method == "OPTIONS" && route != nullptr && !config.allowed_origins.empty()) {
    refusal = preflight_reply(*route, request);
    return false;
  }
  if (needs_key(config, route) && !context.state.keys().match(request.authorization)) {
    refusal = refuse(kInvalidApiKey, request.authorization.empty()
                                         ? "an API key is required: Authorization: Bearer KEY"
                                         : "the API key is not valid");
    return false;
  }
  if (route == nullptr) {
    refusal = refuse(kNotFound, needs_other_heads(request.path)
                                    ? fmt::format("{} is not supported by this build: it has "
                                                  "/v1/embeddings, /v1/score and /v1/rerank",
                                                  request.path)
                                    : fmt::format("no such path: {}", quoted_part(request.path)));
    return false;
  }
  if (request.method != route->method) {
    refusal = refuse(kMethodNotAllowed, fmt::format("{} takes {}, not {}", route->path,
                                                    route->method, quoted_part(request.method)));
    refusal.headers.emplace_back("Allow", route->method == "GET" ? "GET, HEAD" : "POST");
    return false;
  }
  if (route->method == "POST" && !is_json(request.content_type)) {
    refusal = refuse(kUnsupportedMediaType,
                     request.content_type.empty()
                         ? "Content-Type is missing, must be application/json"
                         : fmt::format("Content-Type is {}, must be application/json",
                                       quoted_part(request.content_type)));
    return false;
  }
  if (route->method == "POST" && !request.content_encoding.empty() &&
      request.content_encoding != "identity") {
    refusal = refuse(kUnsupportedMediaType,
                     fmt::format("Content-Encoding is {}, must be absent or identity",
                                 quoted_part(request.content_encoding)));
    return false;
  }
  if (route->needs_model && context.state.model() == nullptr) {
    refusal = refuse_unavailable(context, kLoading, "the model is being loaded");
    return false;
  }
  if (route->new_work && context.state.draining()) {
    refusal = refuse_unavailable(context, kDraining, "the server is shutting down");
    return false;
  }
  if (route->new_work) {
    if (!context.state.keys().open()) request.tenant = tenant_of_key(request.authorization);
    if (std::string tenant = tenant_of_fairness_id(config, request.fairness_id); !tenant.empty())
      request.tenant = std::move(tenant);
    if (const auto over = context.state.admit(request.tenant, request.permit)) {
      refusal = error_reply(*over);
      return false;
    }
  }
  return true;
}

}  // namespace kivi
