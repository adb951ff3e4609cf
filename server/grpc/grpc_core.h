// SPDX-License-Identifier: Apache-2.0
// GrpcCore: what all calls of a GrpcServer share beside the ServerState: the executor, and which
// calls are running.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "server/grpc/grpc_executor.h"
#include "server/grpc/request_message.h"
#include "server/grpc/waiting_calls.h"
#include "server/server_state.h"

namespace kivi {

class Generation;

// Any thread, all members.
class GrpcCore {
 public:
  explicit GrpcCore(ServerState& shared);
  ~GrpcCore();  // stop()

  ServerState& state;

  // The model; error unavailable while it is loading and when the server drains.
  Result<const ServedModel*> model() const;

  // The running calls by request id. Callers choose ids, so several calls may have the same.
  void add(const std::string& request_id, const std::shared_ptr<Generation>& call);
  void remove(const std::string& request_id, const Generation* call);
  // Ends the calls of that id with finish_reason abort, and returns how many there were.
  int abort(const std::string& request_id);
  int running() const;

  GrpcExecutor& executor() { return executor_; }
  // The executor for what `message` asks for: that for long work, if the message is long.
  GrpcExecutor& executor_of(const RequestMessage& message) {
    return message.is_long() ? long_executor_ : executor_;
  }
  // Ends both executors.
  void stop();
  WaitingCalls& waiting() { return waiting_; }
  // Sets the function that returns the client address of a connection's descriptor and notes that
  // this client has begun an allowed call. Before the first call.
  void set_judge(std::function<std::string(int descriptor)> judge) { judge_ = std::move(judge); }
  // Returns the client address of a gRPC peer, which is named "fd:N". Any thread.
  std::string judge(const std::string& peer) const;

 private:
  std::function<std::string(int)> judge_;
  mutable std::mutex mutex_;  // guards calls_
  std::multimap<std::string, std::weak_ptr<Generation>> calls_;
  GrpcExecutor executor_, long_executor_;
  WaitingCalls waiting_;
};

}  // namespace kivi
