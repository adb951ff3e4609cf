// SPDX-License-Identifier: Apache-2.0
// One run: requests sent when they are due, or as places come free; what became of each.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "bench/client/client.h"

namespace kivi::load {

struct RunPlan {
  std::span<const LoadRequest> requests;
  // Open loop: when each is due, seconds, ascending. Empty: closed loop, each is due when a place
  // comes free.
  std::vector<double> due;
  int concurrency = 0;  // requests in flight at most; 0: no limit (open loop only)
  int threads = 1;
};

// What the generator says of itself.
struct GeneratorLoad {
  double cpu_seconds = 0;  // of the whole process
  // CPU of the busiest of our threads / duration, [0, 1]. Nothing where the client reads on threads
  // of a library, which this cannot see.
  std::optional<double> busiest_thread_share;
  int threads = 0;
  int cores = 0;                   // of this machine
  std::vector<float> loop_delays;  // s: how late a 10 ms timer of ours fired, all run long
};

struct RunResult {
  std::vector<RequestRecord> records;  // by request
  double seconds = 0;                  // from the begin to the last end
  GeneratorLoad generator;
};

// Runs the plan; `progress` is called on this thread now and then and at the end. Ends when each
// request has ended, at the latest by its timeout.
RunResult run_load(const RunPlan& plan, const ClientFactory& make_client,
                   const std::function<void(const RunState&)>& progress);

}  // namespace kivi::load
