// SPDX-License-Identifier: Apache-2.0
// GrpcExecutor: the few threads on which gRPC calls do their own work (tokenizing, detokenizing,
// building messages), so that gRPC's threads and the engine's thread only ever post to it.
#pragma once

#include <chrono>
#include <functional>
#include <memory>

#include "base/result.h"

namespace kivi {

// Calls `task`. An exception that leaves it (memory, say) becomes the error of its call.
Status run_guarded(const std::function<Status()>& task);

class GrpcExecutor {
 public:
  explicit GrpcExecutor(int threads);
  ~GrpcExecutor();  // stop()
  GrpcExecutor(const GrpcExecutor&) = delete;
  GrpcExecutor& operator=(const GrpcExecutor&) = delete;

  // Any thread. `task` must not block. An exception that leaves it is logged. After stop() it is
  // dropped.
  void post(std::function<void()> task);
  // Runs `task` once, after `delay`.
  void after(std::chrono::milliseconds delay, std::function<void()> task);

  // Ends the threads once their running tasks return; what is queued is dropped. Not from a task.
  void stop();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace kivi
