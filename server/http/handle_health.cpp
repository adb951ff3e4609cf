// SPDX-License-Identifier: Apache-2.0
// GET /health, /health/ready, /ping (can it serve?), /health/live (does it run?), /version,
// /metrics.
#include "base/version.h"
#include "server/http/http_routes.h"

namespace kivi {

HttpReply handle_health(HttpContext& context, const HttpRequest&) {
  const ServerPhase phase = context.phase();
  if (phase == ServerPhase::ready && context.grpc_answers())
    return json_reply(R"({"status":"ok"})");
  if (phase == ServerPhase::ready) {
    ApiError error{503, "unavailable_error", "grpc_unreachable",
                   "the gRPC port of this server does not answer the server's own probes"};
    error.retry_after = 5;
    return error_reply(error);
  }
  const bool loading = phase == ServerPhase::loading;
  ApiError error{503, "unavailable_error", loading ? "loading" : "draining",
                 loading ? "the model is being loaded" : "the server is shutting down"};
  error.retry_after = 5;
  return error_reply(error);
}

HttpReply handle_live(HttpContext&, const HttpRequest&) { return json_reply(R"({"status":"ok"})"); }

HttpReply handle_version(HttpContext&, const HttpRequest&) {
  return json_reply("{\"version\":\"" KIVI_VERSION "\"}");
}

HttpReply handle_metrics(HttpContext& context, const HttpRequest&) {
  HttpReply reply;
  reply.content_type = "text/plain; version=0.0.4; charset=utf-8";
  reply.body = context.metrics().scrape();
  return reply;
}

}  // namespace kivi
