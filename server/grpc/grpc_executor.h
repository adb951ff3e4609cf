// SPDX-License-Identifier: Apache-2.0
// GrpcExecutor has the few threads on which gRPC calls work: they tokenize, detokenize and build
// messages. The threads of gRPC and of the engine only post to it.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>

#include "base/result.h"
#include "server/api_error.h"

namespace kivi {

// Calls `task`. An exception becomes the error of the call: out_of_memory if an allocation failed,
// else internal_error. Nothing if the task succeeds.
std::optional<ApiError> run_guarded(const std::function<Status()>& task);

class GrpcExecutor {
 public:
  explicit GrpcExecutor(int threads);
  ~GrpcExecutor();  // stop()
  GrpcExecutor(const GrpcExecutor&) = delete;
  GrpcExecutor& operator=(const GrpcExecutor&) = delete;

  // Runs `task` on one of the threads. It must not block. An exception that leaves it is logged.
  // After stop() tasks are dropped. Any thread.
  void post(std::function<void()> task);
  // Runs `task` once, after `delay`.
  void after(std::chrono::milliseconds delay, std::function<void()> task);

  // Ends the threads when their running tasks return, and drops the queued tasks. Not from a task.
  void stop();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace kivi
