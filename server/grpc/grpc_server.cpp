#include "server/grpc/grpc_server.h"

#include <fmt/format.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/impl/service_type.h>

#include <algorithm>
#include <climits>

#include "server/grpc/grpc_core.h"
#include "server/grpc/grpc_service.h"

namespace kivi {
namespace {

// A ping every 10 s is allowed; the rest is for timers that go early.
constexpr int kMinPingIntervalMs = 8'000;
// A peer that vanished without a word is noticed after these.
constexpr int kKeepaliveTimeMs = 60'000;
constexpr int kKeepaliveTimeoutMs = 20'000;
// Streams of one connection; the engine's queue limits all of them together.
constexpr int kMaxStreamsPerConnection = 4'096;
constexpr const char* kServiceName = "kivi.v1.Kivi";

std::string address_of(const ServerConfig& config) {
  const bool v6 = config.host.find(':') != std::string::npos && config.host.front() != '[';
  return fmt::format(fmt::runtime(v6 ? "[{}]:{}" : "{}:{}"), config.host, config.grpc_port);
}

}  // namespace

struct GrpcServer::Impl {
  Impl(const ServerConfig& config, Metrics& metrics)
      : core(config, metrics), service(make_grpc_service(core)) {}

  void set_health(bool serving) {
    for (const char* service : {"", kServiceName})
      server->GetHealthCheckService()->SetServingStatus(service, serving);
  }

  GrpcCore core;
  std::unique_ptr<grpc::Service> service;
  std::unique_ptr<grpc::Server> server;  // null: not started, or stopped
  int port = 0;
};

GrpcServer::GrpcServer(const ServerConfig& config, Metrics& metrics)
    : impl_(std::make_unique<Impl>(config, metrics)) {}

GrpcServer::~GrpcServer() { stop(); }

void GrpcServer::set_rate_limiter(std::shared_ptr<RateLimiter> limiter) {
  impl_->core.set_rate_limiter(std::move(limiter));
}

Status GrpcServer::start() {
  const ServerConfig& config = impl_->core.config();
  // Both are switches of the library for the whole process.
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();

  grpc::ServerBuilder builder;
  builder.AddListeningPort(address_of(config), grpc::InsecureServerCredentials(), &impl_->port);
  builder.RegisterService(impl_->service.get());
  builder.SetMaxReceiveMessageSize(int(std::min<size_t>(config.max_body_bytes, INT_MAX)));
  // A second server on the port must fail, not share it.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxStreamsPerConnection);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             kMinPingIntervalMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveTimeMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  impl_->server = builder.BuildAndStart();
  if (impl_->server == nullptr)
    return Error{
        ErrorCode::invalid,
        fmt::format("grpc_port {}: cannot listen on {}", config.grpc_port, address_of(config)),
        "grpc_port"};
  impl_->set_health(false);
  return ok_status();
}

int GrpcServer::port() const { return impl_->port; }

void GrpcServer::set_model(const ServedModel& model) {
  impl_->core.set_model(model);
  impl_->set_health(true);
}

void GrpcServer::set_serving(bool serving) { impl_->set_health(serving); }

void GrpcServer::begin_drain() {
  impl_->core.begin_drain();
  impl_->set_health(false);
}

int GrpcServer::running() const { return impl_->core.running(); }

void GrpcServer::stop() {
  if (impl_->server == nullptr) return;
  impl_->core.begin_drain();
  // Calls are cancelled at once; returns when the last one is done.
  impl_->server->Shutdown(std::chrono::system_clock::now());
  impl_->server->Wait();
  impl_->server.reset();
  impl_->core.executor().stop();
}

}  // namespace kivi
