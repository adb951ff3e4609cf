// SPDX-License-Identifier: Apache-2.0
#include "bench/throughput_run.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <random>

namespace kivi {
namespace {

int draw(const LengthRange& range, std::mt19937_64& random) {
  return range.min + int(random() % uint64_t(range.max - range.min + 1));
}

// The engine's trace goes into `steps` as long as this lives.
class Tracing {
 public:
  Tracing(Engine& engine, std::vector<StepTrace>& steps) : engine_(engine) {
    engine_.on_trace([&steps](const StepTrace& step) { steps.push_back(step); });
  }
  ~Tracing() { engine_.on_trace({}); }
  Tracing(const Tracing&) = delete;
  Tracing& operator=(const Tracing&) = delete;

 private:
  Engine& engine_;
};

// Submits, and reads what comes back. Engine thread = caller.
class Reader {
 public:
  Reader(Engine& engine, const ThroughputOptions& options, uint64_t seed, ThroughputRun& run)
      : engine_(engine), options_(options), seed_(seed), run_(run), begin_(Clock::now()) {
    run_.requests.resize(size_t(options.num_prompts));
    streams_.resize(run_.requests.size());
  }

  double now() const { return std::chrono::duration<double>(Clock::now() - begin_).count(); }
  bool done() const { return finished_ == int(run_.requests.size()); }

  // Submits until `in_flight` requests are unfinished or all are submitted.
  Status submit(int in_flight) {
    while (submitted_ < int(run_.requests.size()) && submitted_ - finished_ < in_flight) {
      const int index = submitted_++;
      Request request = throughput_request(options_, engine_.model().vocab_size, seed_, index);
      RequestRecord& record = run_.requests[size_t(index)];
      record.prompt_tokens = int(request.prompt.size());
      record.gaps.reserve(size_t(request.sampling.max_tokens));
      record.submitted = now();
      KIVI_ASSIGN_OR_RETURN(
          streams_[size_t(index)],
          engine_.submit(std::move(request), [this, index] { ready_.push_back(index); }));
    }
    return ok_status();
  }

  // Takes the tokens of the step that has just ended; returns how many requests ended in it.
  Result<int> read() {
    const int finished_before = finished_;
    const double time = now();
    std::vector<int> ready;
    ready.swap(ready_);
    for (const int index : ready) {
      events_.clear();
      const bool ended = streams_[size_t(index)]->drain(events_);
      for (const TokenEvent& event : events_) KIVI_RETURN_IF_ERROR(take(event, index, time));
      if (!ended) continue;
      streams_[size_t(index)].reset();
      ++finished_;
    }
    return finished_ - finished_before;
  }

 private:
  Status take(const TokenEvent& event, int index, double time) {
    if (event.error) return *event.error;
    if (event.id < 0) return ok_status();
    RequestRecord& record = run_.requests[size_t(index)];
    if (record.output_tokens++ == 0) {
      record.first_token = time;
    } else {
      record.gaps.push_back(float(time - record.last_token));
    }
    record.last_token = time;
    return ok_status();
  }

  Engine& engine_;
  const ThroughputOptions& options_;
  const uint64_t seed_;
  ThroughputRun& run_;
  const Clock::time_point begin_;
  std::vector<std::shared_ptr<TokenStream>> streams_;  // by request
  std::vector<int> ready_;                             // requests with events
  std::vector<TokenEvent> events_;
  int submitted_ = 0;
  int finished_ = 0;
};

}  // namespace

Request throughput_request(const ThroughputOptions& options, int vocab_size, uint64_t seed,
                           int index) {
  std::mt19937_64 random(seed * 1'000'003 + uint64_t(index));
  Request request;
  request.id = fmt::format("throughput-{}", index);
  request.prompt.resize(size_t(draw(options.prompt_len, random)));
  for (int32_t& id : request.prompt) id = int32_t(random() % uint64_t(vocab_size));
  request.sampling.max_tokens = draw(options.output_len, random);
  request.sampling.ignore_eos = true;
  request.sampling.seed = random();
  return request;
}

Result<ThroughputRun> measure_throughput(Engine& engine, const ThroughputOptions& options,
                                         uint64_t seed, int in_flight) {
  ThroughputRun run;
  run.in_flight = in_flight;
  const EngineStats before = engine.stats();
  uint64_t rows = before.step_tokens;
  Reader reader(engine, options, seed, run);
  const Tracing tracing(engine, run.trace);
  while (!reader.done()) {
    KIVI_RETURN_IF_ERROR(reader.submit(in_flight));
    engine.step();
    const EngineStats stats = engine.stats();
    const KvBytes& kv = stats.kv_bytes;
    KIVI_ASSIGN_OR_RETURN(const int finished, reader.read());
    run.steps.push_back({reader.now(), int(stats.step_tokens - rows), stats.running + finished,
                         kv.codes + kv.parameters + kv.residual});
    rows = stats.step_tokens;
  }
  run.seconds = reader.now();
  run.preemptions = engine.stats().preemptions - before.preemptions;
  return run;
}

}  // namespace kivi
