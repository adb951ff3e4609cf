// SPDX-License-Identifier: Apache-2.0
// The settings of the front ends: plain data with the defaults. tools/flags_table.cpp has a row for
// every field.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/limits.h"

namespace kivi {

struct ServerConfig {
  std::string host = "127.0.0.1";
  int port = 8000;        // 0: any free port; -1: no HTTP
  int grpc_port = 50051;  // 0: any free port; -1: no gRPC
  // Names of the model; replies and metrics have the first. Empty: the model folder's name.
  std::vector<std::string> served_model_name;
  std::vector<std::string> api_keys;  // --api-key (repeatable), --api-key-file; empty: open
  bool allow_open = false;            // no key is needed, although others reach `host`
  std::string ssl_certfile;           // PEM, with its chain; "": no TLS
  std::string ssl_keyfile;            // PEM; "": the key is in ssl_certfile
  std::string ssl_ca_certs;  // PEM: authorities that sign client certificates; "": none needed
  bool metrics_require_key = false;
  bool playground = true;  // the page at /
  std::string metrics_prefix = "kivi";
  std::vector<std::string> allowed_origins;  // CORS; empty: off
  std::vector<std::string> allowed_hosts;    // besides the local names; "*": any
  // Which blocks the prefix cache keeps, told to routers over ZeroMQ (kv_event_publisher.h).
  std::string kv_events_endpoint;         // "": off
  std::string kv_events_replay_endpoint;  // "": none
  std::string kv_events_topic;            // "": made of the host's name, the port and the model
  // Headers of an inference gateway (gateway.h): the tenant, and objectives as "NAME=PRIORITY".
  bool gateway_headers = false;
  std::vector<std::string> objective_priorities;
  bool strict_params = false;  // unknown request fields are 400 instead of logged once
  // How the model writes tool calls: auto (as its chat template says), none, hermes, llama3_json,
  // mistral or pythonic.
  std::string tool_call_parser = "auto";
  // The marks of reasoning in answers to chats: "BEGIN,END", auto (as the chat template says),
  // none.
  std::string reasoning_tags = "auto";
  std::string otlp_traces_endpoint;  // URL of a collector of spans; "": none
  bool enable_log_requests = false;
  std::string log_level = "info";   // trace | debug | info | warning | error
  std::string log_format = "text";  // text | json
  int drain_delay = 0;              // seconds after SIGTERM in which new work is still taken
  int shutdown_timeout = 30;        // seconds of drain
  int io_threads = 2;               // HTTP
  size_t max_body_bytes = kDefaultMaxBodyBytes;
  size_t max_body_bytes_in_flight = kDefaultMaxBodyBytesInFlight;  // of both front ends
  // Of these, at most half from one address.
  int max_connections = kDefaultMaxConnections;  // HTTP
  int max_grpc_connections = kDefaultMaxGrpcConnections;
  int header_timeout = 20;  // seconds to send a request's headers and body
  int write_timeout = 60;   // seconds for which a client need not read
  int idle_timeout = 120;   // seconds a kept-alive connection may be silent
  int request_timeout = 0;  // seconds from accept to the last token; 0: none
  // Per API key, or per client address without keys; 0 is off.
  int limit_requests_per_minute = 0;
  int64_t limit_tokens_per_minute = 0;
  int limit_concurrent_requests = 0;
};

// How long a client may take to read so many bytes. One that reads slowly, but reads on, gets all
// of a large reply.
inline std::chrono::seconds write_limit(const ServerConfig& config, size_t bytes) {
  constexpr size_t kSlowest = 128 << 10;  // bytes a second
  return std::chrono::seconds(config.write_timeout) + std::chrono::seconds(bytes / kSlowest);
}

}  // namespace kivi
