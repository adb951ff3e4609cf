#include "server/http/http_routes.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

#include "server/auth.h"
#include "server/json_writer.h"
#include "server/tenant.h"

namespace kivi {
namespace {

constexpr Route kRoutes[] = {
    {"/health", "GET", Access::open, false, false, handle_health},
    {"/health/ready", "GET", Access::open, false, false, handle_health},
    {"/health/live", "GET", Access::open, false, false, handle_live},
    {"/ping", "GET", Access::open, false, false, handle_health},
    {"/version", "GET", Access::open, false, false, handle_version},
    {"/metrics", "GET", Access::metrics, false, false, handle_metrics},
    {"/v1/models", "GET", Access::key, true, false, handle_models},
    {"/v1/models/*", "GET", Access::key, true, false, handle_model},
    {"/tokenizer_info", "GET", Access::key, true, false, handle_tokenizer_info},
    {"/v1/tokenizer_info", "GET", Access::key, true, false, handle_tokenizer_info},
    {"/tokenize", "POST", Access::key, true, false, nullptr, handle_tokenize},
    {"/v1/tokenize", "POST", Access::key, true, false, nullptr, handle_tokenize},
    {"/detokenize", "POST", Access::key, true, false, nullptr, handle_detokenize},
    {"/v1/detokenize", "POST", Access::key, true, false, nullptr, handle_detokenize},
    {"/v1/completions", "POST", Access::key, true, true, nullptr, handle_completions},
    {"/v1/chat/completions", "POST", Access::key, true, true, nullptr, handle_chat_completions},
};

HttpReply refuse(int status, const char* code, std::string message) {
  ApiError error{status, "invalid_request_error", code, std::move(message)};
  if (status == 401) error.type = "authentication_error";
  return error_reply(error);
}

HttpReply refuse_unavailable(HttpContext& context, const char* code, const char* message) {
  context.metrics().admission_rejected(code);
  ApiError error{503, "unavailable_error", code, message};
  error.retry_after = 5;
  return error_reply(error);
}

// "application/json", with parameters or not; an absent type is taken for it.
bool is_json(std::string_view type) {
  type = type.substr(0, type.find(';'));
  while (!type.empty() && (type.back() == ' ' || type.back() == '\t')) type.remove_suffix(1);
  if (type.empty()) return true;
  return std::ranges::equal(type, std::string_view("application/json"), [](char a, char b) {
    return std::tolower(static_cast<unsigned char>(a)) == b;
  });
}

std::string quoted(std::string_view text) {
  std::string out;
  append_json_string(out, text.substr(0, 200));
  return out;
}

bool needs_key(const ServerConfig& config, const Route* route) {
  if (config.api_keys.empty()) return false;
  if (route == nullptr) return true;
  return route->access == Access::key ||
         (route->access == Access::metrics && config.metrics_require_key);
}

HttpReply preflight_reply(const Route& route) {
  HttpReply reply;
  reply.status = 204;
  reply.content_type = "";
  reply.headers = {{"Allow", fmt::format("{}, OPTIONS", route.method)},
                   {"Access-Control-Allow-Methods", fmt::format("{}, OPTIONS", route.method)},
                   {"Access-Control-Allow-Headers", "Authorization, Content-Type, X-Request-Id"},
                   {"Access-Control-Max-Age", "600"}};
  return reply;
}

}  // namespace

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
                   HttpReply& refusal) {
  const ServerConfig& config = context.config();
  route = find_route(request.path);
  request.handler = route == nullptr ? "other" : std::string(route->path);
  // A browser's preflight carries no key.
  if (request.method == "OPTIONS" && route != nullptr && !config.allowed_origins.empty()) {
    refusal = preflight_reply(*route);
    return false;
  }
  if (needs_key(config, route) && !bearer_matches(config.api_keys, request.authorization)) {
    refusal =
        refuse(401, "invalid_api_key",
               request.authorization.empty() ? "an API key is required: Authorization: Bearer KEY"
                                             : "the API key is not valid");
    return false;
  }
  if (route == nullptr) {
    refusal = refuse(404, "not_found", fmt::format("no such path: {}", quoted(request.path)));
    return false;
  }
  if (request.method != route->method) {
    refusal = refuse(
        405, "method_not_allowed",
        fmt::format("{} takes {}, not {}", route->path, route->method, quoted(request.method)));
    refusal.headers.emplace_back("Allow", route->method == "GET" ? "GET, HEAD" : "POST");
    return false;
  }
  if (route->method == "POST" && !is_json(request.content_type)) {
    refusal = refuse(
        415, "unsupported_media_type",
        fmt::format("Content-Type is {}, must be application/json", quoted(request.content_type)));
    return false;
  }
  if (route->method == "POST" && !request.content_encoding.empty() &&
      request.content_encoding != "identity") {
    refusal = refuse(415, "unsupported_media_type",
                     fmt::format("Content-Encoding is {}, must be absent or identity",
                                 quoted(request.content_encoding)));
    return false;
  }
  if (route->needs_model && context.model() == nullptr) {
    refusal = refuse_unavailable(context, "loading", "the model is being loaded");
    return false;
  }
  if (route->new_work && context.phase() == ServerPhase::draining) {
    refusal = refuse_unavailable(context, "draining", "the server is shutting down");
    return false;
  }
  if (route->new_work) {
    if (!config.api_keys.empty()) request.tenant = tenant_of_key(request.authorization);
    if (const auto over = context.rate_limiter().admit(request.tenant, request.permit)) {
      context.metrics().admission_rejected("rate_limit");
      ApiError error{429, "rate_limit_error", "rate_limit_exceeded", over->message};
      error.retry_after = over->retry_after;
      refusal = error_reply(error);
      return false;
    }
  }
  return true;
}

}  // namespace kivi
