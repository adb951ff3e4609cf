// SPDX-License-Identifier: Apache-2.0
// The client of the Generate stream of kivi.v1. It reads messages on the threads of gRPC.
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
// `target` is "HOST:PORT". Error: the server cannot be reached in time, or it answered with an
// error.
Result<GrpcModelInfo> grpc_model_info(const std::string& target, const std::string& api_key,
                                      double timeout_s);

// Makes a client with its own channel (a connection). It does not use RequestOptions::chat and
// extra_body.
std::unique_ptr<LoadClient> make_grpc_client(boost::asio::io_context& io, const std::string& target,
                                             RequestOptions options);

}  // namespace kivi::load
