// SPDX-License-Identifier: Apache-2.0
#include "server/grpc/grpc_server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/impl/service_type.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/server_posix.h>

#include <algorithm>
#include <climits>
#include <mutex>
#include <optional>

#include "server/grpc/grpc_core.h"
#include "server/grpc/grpc_listener.h"
#include "server/grpc/grpc_probe.h"
#include "server/grpc/grpc_service.h"
#include "server/grpc/grpc_standard.h"
#include "server/grpc/header_limit.h"
#include "server/tls_relay.h"

namespace kivi {
namespace {

// A ping every 10 s is allowed; the rest is for timers that go early.
constexpr int kMinPingIntervalMs = 8'000;
// A peer that vanished without a word is noticed after these.
constexpr int kKeepaliveTimeMs = 60'000;
constexpr int kKeepaliveTimeoutMs = 20'000;
// Streams of one connection. A client with more calls than this waits for its own.
constexpr int kMaxStreamsPerConnection = 1'024;
// Bytes that a stream may send before its message is asked for: HTTP/2's own initial window.
constexpr int kStreamWindowBytes = 64 << 10;
// All headers of a call together.
constexpr int kMaxCallHeaderBytes = 16 << 10;
// What the library may hold for all calls. Beyond it, the library cancels calls.
constexpr size_t kMinQuotaBytes = 256 << 20;
constexpr size_t kQuotaMessages = 16;  // of max_body_bytes
constexpr const char* kServiceName = "kivi.v1.Kivi";

// Limits that hold for every connection, whoever its client is.
void set_limits(grpc::ServerBuilder& builder, const ServerConfig& config) {
  builder.SetMaxReceiveMessageSize(int(std::min<size_t>(config.max_body_bytes, INT_MAX)));
  builder.SetResourceQuota(grpc::ResourceQuota("kivi").Resize(
      std::max(kMinQuotaBytes, kQuotaMessages * config.max_body_bytes)));
  // The library inflates a message before it looks at its size or at the call's key. So the only
  // encoding is identity; compressed messages end their call with UNIMPLEMENTED.
  builder.AddChannelArgument(GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0);
  builder.SetDefaultCompressionAlgorithm(GRPC_COMPRESS_NONE);
  for (const auto algorithm : {GRPC_COMPRESS_GZIP, GRPC_COMPRESS_DEFLATE})
    builder.SetCompressionAlgorithmSupportStatus(algorithm, false);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMaxCallHeaderBytes);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxStreamsPerConnection);
  // The bandwidth probe would widen the window of every stream to megabytes.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, kStreamWindowBytes);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             kMinPingIntervalMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveTimeMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, config.idle_timeout * 1'000);
  // Off by default; sending without a copy corrupts data in this version (CVE-2024-11407).
  builder.AddChannelArgument(GRPC_ARG_TCP_TX_ZEROCOPY_ENABLED, 0);
}

}  // namespace

struct GrpcServer::Impl {
  explicit Impl(ServerState& state)
      : core(state),
        service(make_grpc_service(core)),
        reflection(make_reflection_service(core)),
        health_list(make_health_list_service(core)) {}

  // Health is SERVING where nothing speaks against it.
  void tell_health() {
    const std::lock_guard lock(mutex);
    if (server == nullptr) return;
    const bool serving = core.state.phase() == ServerPhase::ready && core.state.grpc_answers();
    for (const char* name : {"", kServiceName})
      server->GetHealthCheckService()->SetServingStatus(name, serving);
  }

  GrpcCore core;
  std::unique_ptr<grpc::Service> service, reflection, health_list;
  std::unique_ptr<grpc::Server> server;           // null: not started, or stopped
  std::unique_ptr<TlsCertificates> certificates;  // null: no TLS
  std::optional<TlsRelay> relay;                  // with certificates
  GrpcListener listener;
  std::optional<GrpcProbe> probe;
  std::mutex mutex;  // guards the order of health's changes, and that of `server`
};

GrpcServer::GrpcServer(ServerState& state) : impl_(std::make_unique<Impl>(state)) {}

GrpcServer::~GrpcServer() { stop(); }

Status GrpcServer::start() {
  ServerState& state = impl_->core.state;
  const ServerConfig& config = state.config();
  // Both are switches of the library for the whole process.
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();

  impl_->core.set_judge(
      [impl = impl_.get()](int descriptor) { return impl->listener.judge(descriptor); });
  KIVI_ASSIGN_OR_RETURN(impl_->certificates, TlsCertificates::load(config, "h2"));
  GrpcListener& listener = impl_->listener;
  KIVI_RETURN_IF_ERROR(
      listener.listen({.host = config.host,
                       .port = config.grpc_port,
                       .connections_max = config.max_grpc_connections,
                       .connections_per_source = std::max(1, config.max_grpc_connections / 2),
                       .unread_limit = std::chrono::seconds(config.write_timeout)}));

  grpc::ServerBuilder builder;
  for (grpc::Service* service :
       {impl_->service.get(), impl_->reflection.get(), impl_->health_list.get()})
    builder.RegisterService(service);
  set_limits(builder, config);
  auto server = builder.BuildAndStart();
  if (server == nullptr)
    return Error{ErrorCode::internal, "the gRPC library cannot start its server"};
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->server = std::move(server);
  }
  state.on_change([impl = impl_.get()] { impl->tell_health(); });
  impl_->tell_health();
  if (impl_->certificates)
    impl_->relay.emplace(
        *impl_->certificates,
        TlsRelay::Options{.threads = std::max(1, config.io_threads),
                          .connections_max = config.max_grpc_connections,
                          .handshake_timeout = std::chrono::seconds(config.header_timeout)});
  // The probe comes from this process, and needs no TLS.
  listener.start(
      [impl = impl_.get()](int descriptor, bool is_probe) {
        const auto serve = [impl, descriptor](int plain) {
          if (plain != descriptor) impl->listener.relayed(descriptor, plain);
          limit_header_blocks(plain);
          grpc::AddInsecureChannelFromFd(impl->server.get(), plain);
        };
        impl->relay && !is_probe ? impl->relay->serve(descriptor, serve) : serve(descriptor);
      },
      [core = &impl_->core] { core->state.metrics().admission_rejected("connections"); });
  impl_->probe.emplace(listener, [&state](bool answers) { state.set_grpc_answers(answers); });
  return ok_status();
}

Status GrpcServer::reload_certificates() {
  return impl_->certificates ? impl_->certificates->reload() : ok_status();
}

int GrpcServer::port() const { return impl_->listener.port(); }

int GrpcServer::running() const { return impl_->core.running(); }

void GrpcServer::stop() {
  if (impl_->server == nullptr) return;
  impl_->core.state.begin_drain();
  impl_->probe.reset();
  impl_->core.state.on_change({});
  impl_->listener.stop();
  if (impl_->relay) impl_->relay->stop_accepting();
  // Calls are cancelled at once; returns when the last one is done.
  impl_->server->Shutdown(std::chrono::system_clock::now());
  impl_->server->Wait();
  impl_->relay.reset();  // has handed the last bytes over
  impl_->server.reset();
  impl_->core.stop();
}

}  // namespace kivi
