// SPDX-License-Identifier: Apache-2.0
// Engine takes token ids and returns token ids. Any thread may call `submit`. One engine thread
// owns everything else. It runs steps while there is work and sleeps otherwise.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/config.h"
#include "engine/kv_cache.h"
#include "engine/request.h"
#include "engine/step_runner.h"
#include "engine/token_stream.h"

namespace kivi {

// What the engine knows about its model, besides the runner.
struct EngineLimits {
  int vocab_size = 0;
  int max_model_len = 0;               // prompt + output, tokens
  std::vector<int32_t> eos_token_ids;  // of config and generation_config
};

// A consistent snapshot for /metrics. It is taken after a step is planned, and at the end of the
// step before its events are delivered. So a client that has read its last event is already
// counted.
struct EngineStats {
  int running = 0;
  int waiting = 0;  // not yet admitted, or preempted
  int64_t waiting_tokens = 0;
  KvBytes kv_bytes;  // held
  int64_t kv_pages_total = 0, kv_pages_free = 0;
  int64_t kv_slots_total = 0, kv_slots_free = 0;
  int64_t staging_pages_total = 0, staging_pages_free = 0;
  PrefixCounts prefix;             // tokens
  int64_t prefix_pages = 0;        // kept for later requests and held by no sequence; they are free
  int64_t prefix_checkpoints = 0;  // slabs in such pages
  KvTierStats tier;                // pages on the host and on disk
  FetchCounts fetch;               // what could have come from there and was computed
  uint64_t steps = 0;
  uint64_t step_tokens = 0;        // rows computed in all steps
  uint64_t prompt_tokens = 0;      // of admitted requests, counted once
  uint64_t generation_tokens = 0;  // tokens that were emitted
  uint64_t forced_tokens = 0;      // of these, forced by a constraint and not sampled
  uint64_t preemptions = 0;
  uint64_t finished[4] = {};   // by FinishReason
  uint64_t broken_logits = 0;  // requests that ended because their logits were NaN or infinite
};

// One step that has been collected, for traces.
struct StepTrace {
  uint64_t step = 0;  // from 1
  int rows = 0;       // tokens computed
  int sequences = 0;
  int decodes = 0;                     // sequences that computed one token and sampled the next
  int64_t context_tokens = 0;          // cached before the step, of all its sequences
  std::chrono::nanoseconds planned{};  // when its planning began, since the trace began
  std::chrono::nanoseconds collected{};
  std::optional<StepTimes> device;  // none for the first step; none without a device

  bool decodes_only() const { return decodes == sequences; }
};

class Engine {
 public:
  // `runner` computes; `layout` and `capacity` say what the store holds, and `tier` what keeps
  // pages beyond it.
  Engine(const EngineConfig& config, EngineLimits model, const KvLayout& layout,
         const KvCapacity& capacity, std::unique_ptr<StepRunner> runner, KvTierSetup tier = {});
  // Stops the thread; unfinished requests end with abort.
  ~Engine();

  // Hands a request to the engine. Any thread. Errors: invalid (validate; an empty prompt, or an id
  // outside the vocabulary), context_length (prompt + at least one token beyond max_model_len, or a
  // cache that could never hold it), resource_exhausted (queue limits, by requests and by tokens,
  // counted atomically), unavailable (draining). max_tokens is cut to what the context still holds.
  // Several requests may have the same id.
  Result<std::shared_ptr<TokenStream>> submit(Request request, std::function<void()> notify);

  // Submits all requests or none of them. Errors as those of submit(). `notify_of(i)` is the
  // notification of request i. When no request waits, more than max_num_queued_reqs are taken at
  // once. Any thread.
  Result<std::vector<std::shared_ptr<TokenStream>>> submit_all(
      std::vector<Request> requests, const std::function<std::function<void()>(size_t)>& notify_of);
  // Returns the error that submit_all of this many requests and prompt tokens would return now
  // because of the queue. Any thread.
  Status check_room(int requests, int64_t prompt_tokens) const;

  // Starts the engine thread. Once.
  void start();
  // Runs steps on the caller's thread until nothing is left. For offline use and tests, without
  // start().
  void run_until_idle();
  // Runs one step: admit, plan, launch, collect, emit. If the runner is asynchronous, the results
  // are those of the step before. The next step is then planned and launched while one runs, with
  // tokens that only the device knows. Returns false if there was nothing to do.
  bool step();

  // Any thread may call the following.

  // Takes no new work from now on, and waits until nothing is left. Returns false if work was left
  // after `timeout`; that work ends with abort at the next step. Without start(), the caller must
  // run it.
  bool drain(std::chrono::milliseconds timeout);
  // Ends every request at the next step with abort.
  void abort_all();
  // Ends the requests with that id and those of its choices ("<id>/..."). Returns false if there
  // are none.
  bool abort(const std::string& request_id);

  EngineStats stats() const;
  // Calls `observer` on the engine thread after each step, for metrics. Set it before start().
  void on_step(std::function<void(int rows, double seconds)> observer);
  // Calls `observer` after each step with a trace that includes device times. Taking them costs two
  // device events a step. Pass an empty function to stop. Engine thread, or before start().
  void on_trace(std::function<void(const StepTrace&)> observer);
  // Shows every row of logits, before penalties and bias, to `observer`. Each step then waits until
  // its logits are on the host. Pass an empty function to stop. Engine thread, or before start().
  void on_logits(LogitsObserver observer);
  // Tells `observer` which blocks the prefix cache keeps. Set it before start(); it must outlive
  // the engine.
  void observe_prefixes(PrefixObserver* observer);
  const EngineLimits& model() const;
  const EngineConfig& config() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace kivi
