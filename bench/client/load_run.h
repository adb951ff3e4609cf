// SPDX-License-Identifier: Apache-2.0
// Runs a load: sends each request when it is due, or when the number in flight allows it, and
// records what became of it.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "bench/client/client.h"

namespace kivi::load {

struct RunPlan {
  std::span<const LoadRequest> requests;
  // Open loop: when each request is due, in seconds, ascending. Empty: closed loop, in which a
  // request is due as soon as fewer than `concurrency` are in flight.
  std::vector<double> due;
  int concurrency = 0;  // requests in flight at most; 0: no limit (open loop only)
  int threads = 1;
};

// How busy the load generator itself was.
struct GeneratorLoad {
  double cpu_seconds = 0;  // of the whole process
  // CPU time of the busiest of our threads / duration, in [0, 1]. Unset if the client reads on
  // threads of a library, whose time is not visible here.
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

// Runs the plan, and calls `progress` on this thread now and then and at the end. Returns when
// every request has ended, at the latest by its timeout.
RunResult run_load(const RunPlan& plan, const ClientFactory& make_client,
                   const std::function<void(const RunState&)>& progress);

}  // namespace kivi::load
