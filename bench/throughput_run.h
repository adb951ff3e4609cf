// SPDX-License-Identifier: Apache-2.0
// One run of `kivi bench throughput`: a fixed set of requests through an engine on the caller's
// thread, at a given number in flight, with a record of every request and every step.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "bench/throughput_options.h"
#include "engine/engine.h"

namespace kivi {

struct ThroughputRequest {
  int prompt_tokens = 0;
  int cached_tokens = 0;  // of the prompt, reused from the prefix cache
  int output_tokens = 0;
  double submitted = 0;    // seconds since the run's start
  double first_token = 0;  // likewise
  double last_token = 0;
  std::vector<float> gaps;  // seconds between tokens that follow each other
};

struct StepRecord {
  double end = 0;        // seconds since the run's start
  int rows = 0;          // tokens computed
  int running = 0;       // sequences: those that go on, and those that ended in the step
  int64_t kv_bytes = 0;  // codes, parameters and residual held after the step by those that go on
};

struct ThroughputRun {
  int in_flight = 0;  // as asked for
  double seconds = 0;
  uint64_t preemptions = 0;
  PrefixCounts prefix;                      // prompt tokens, of this run
  std::vector<ThroughputRequest> requests;  // conversation by conversation
  std::vector<StepRecord> steps;
  std::vector<StepTrace> trace;  // what the engine and the device say of them
};

// A place in a run: which conversation, and which turn of it.
struct TurnIndex {
  int conversation = 0;
  int turn = 0;
};

// Returns the request of a turn. `before` is the conversation so far, which its prompt begins with.
// Lengths are a pure function of (options, seed, index), so that all runs have the same work. Ids
// also depend on `run`, so that no run finds what an earlier one has left in the prefix cache.
Request throughput_request(const ThroughputOptions& options, int vocab_size, uint64_t seed, int run,
                           TurnIndex index, std::vector<int32_t> before = {});

using ConstraintSource = std::function<std::shared_ptr<TokenConstraint>()>;

// Runs the conversations with at most `in_flight` of them under way at a time. A conversation's
// next turn is submitted as soon as the one before has ended. The engine must not have been
// started. `run`: the number of this run of an engine. `constraint` makes the constraint of each
// request; empty = the outputs are free. Error: what the engine refused, or the error of a request.
Result<ThroughputRun> measure_throughput(Engine& engine, const ThroughputOptions& options,
                                         uint64_t seed, int in_flight, int run = 0,
                                         const ConstraintSource& constraint = {});

}  // namespace kivi
