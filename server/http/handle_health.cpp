// SPDX-License-Identifier: Apache-2.0
// GET /health, /health/ready, /ping (can it serve?), /health/live (does it run?), /version,
// /metrics.
#include "base/version.h"
#include "server/http/http_routes.h"

namespace kivi {

HttpReply handle_health(HttpContext& context, const HttpRequest&) {
  const ServerPhase phase = context.state.phase();
  if (phase == ServerPhase::loading)
    return error_reply(ApiError{kLoading, "the model is being loaded"});
  if (context.state.leaving_or_draining())
    return error_reply(ApiError{kDraining, "the server is shutting down"});
  if (!context.state.grpc_answers())
    return error_reply(ApiError{
        kGrpcUnreachable, "the gRPC port of this server does not answer the server's own probes"});
  return json_reply(R"({"status":"ok"})");
}

HttpReply handle_live(HttpContext&, const HttpRequest&) { return json_reply(R"({"status":"ok"})"); }

HttpReply handle_version(HttpContext&, const HttpRequest&) {
  return json_reply("{\"version\":\"" KIVI_VERSION "\"}");
}

HttpReply handle_metrics(HttpContext& context, const HttpRequest&) {
  HttpReply reply;
  reply.content_type = "text/plain; version=0.0.4; charset=utf-8";
  reply.body = context.state.metrics().scrape();
  return reply;
}

}  // namespace kivi
