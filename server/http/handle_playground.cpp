// SPDX-License-Identifier: Apache-2.0
// GET /, /playground.css, /playground.js: a page to talk to the model. GET /docs, /docs.js: a page
// that shows /openapi.json. They are open to anyone, because they hold nothing but themselves; what
// they send needs a key like all else.
#include <fmt/format.h>

#include "server/http/http_routes.h"
#include "server/playground/playground_files.h"

namespace kivi {
namespace {

// A page may load its own files and speak with its own server, and nothing else.
constexpr const char* kPolicy =
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

HttpReply file_reply(HttpContext& context, const HttpRequest& request, std::string_view content,
                     const char* type) {
  if (!context.state.config().playground)
    return error_reply(ApiError{kNotFound, fmt::format("no such path: \"{}\"", request.path)});
  HttpReply reply;
  reply.content_type = type;
  reply.body = content;
  reply.headers = {{"Content-Security-Policy", kPolicy},
                   {"X-Content-Type-Options", "nosniff"},
                   {"Referrer-Policy", "no-referrer"},
                   {"Cache-Control", "no-cache"}};
  return reply;
}

}  // namespace

HttpReply handle_playground(HttpContext& context, const HttpRequest& request) {
  return file_reply(context, request, kPlaygroundHtml, "text/html; charset=utf-8");
}

HttpReply handle_playground_css(HttpContext& context, const HttpRequest& request) {
  return file_reply(context, request, kPlaygroundCss, "text/css; charset=utf-8");
}

HttpReply handle_playground_js(HttpContext& context, const HttpRequest& request) {
  return file_reply(context, request, kPlaygroundJs, "text/javascript; charset=utf-8");
}

HttpReply handle_reference(HttpContext& context, const HttpRequest& request) {
  return file_reply(context, request, kReferenceHtml, "text/html; charset=utf-8");
}

HttpReply handle_reference_js(HttpContext& context, const HttpRequest& request) {
  return file_reply(context, request, kReferenceJs, "text/javascript; charset=utf-8");
}

}  // namespace kivi
