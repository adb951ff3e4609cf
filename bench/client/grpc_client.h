// SPDX-License-Identifier: Apache-2.0
// GrpcClient: kivi.v1's Generate stream. Messages are taken on gRPC's own threads.
#pragma once

#include <memory>
#include <string>

#include "bench/client/client.h"

namespace kivi::load {

// What GetModelInfo says.
struct GrpcModelInfo {
  std::string model;
  int vocab_size = 0;
};
// `target`: "HOST:PORT". Error: not reachable in time, or what the server answered.
Result<GrpcModelInfo> grpc_model_info(const std::string& target, const std::string& api_key,
                                      double timeout_s);

// A client with a channel (a connection) of its own; RequestOptions::chat and extra_body are not
// for gRPC.
std::unique_ptr<LoadClient> make_grpc_client(boost::asio::io_context& io, const std::string& target,
                                             RequestOptions options);

}  // namespace kivi::load
