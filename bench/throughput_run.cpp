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
  Reader(Engine& engine, const ThroughputOptions& options, uint64_t seed,
         const ConstraintSource& constraint, int number, ThroughputRun& run)
      : engine_(engine),
        options_(options),
        seed_(seed),
        constraint_(constraint),
        number_(number),
        run_(run),
        begin_(Clock::now()) {
    run_.requests.resize(size_t(options.num_prompts) * size_t(options.turns));
    conversations_.resize(size_t(options.num_prompts));
  }

  double now() const { return std::chrono::duration<double>(Clock::now() - begin_).count(); }
  bool done() const { return finished_ == int(conversations_.size()); }

  // Begins conversations until `in_flight` of them are under way or all have begun.
  Status begin(int in_flight) {
    while (begun_ < int(conversations_.size()) && begun_ - finished_ < in_flight)
      KIVI_RETURN_IF_ERROR(submit(begun_++));
    return ok_status();
  }

  // Takes the tokens of the step that has just ended; returns how many requests ended in it.
  Result<int> read() {
    int ended_requests = 0;
    const double time = now();
    std::vector<int> ready;
    ready.swap(ready_);
    for (const int index : ready) {
      Conversation& conversation = conversations_[size_t(index)];
      events_.clear();
      const bool ended = conversation.stream->drain(events_);
      for (const TokenEvent& event : events_) KIVI_RETURN_IF_ERROR(take(event, index, time));
      if (!ended) continue;
      conversation.stream.reset();
      ++ended_requests;
      if (++conversation.turn < options_.turns)
        KIVI_RETURN_IF_ERROR(submit(index));
      else
        ++finished_;
    }
    return ended_requests;
  }

 private:
  struct Conversation {
    int turn = 0;
    std::vector<int32_t> tokens;  // so far, where there are turns to come
    std::shared_ptr<TokenStream> stream;
  };

  ThroughputRequest& record_of(int index) {
    return run_.requests[size_t(index) * size_t(options_.turns) +
                         size_t(conversations_[size_t(index)].turn)];
  }

  Status submit(int index) {
    Conversation& conversation = conversations_[size_t(index)];
    Request request =
        throughput_request(options_, engine_.model().vocab_size, seed_, number_,
                           {index, conversation.turn}, std::move(conversation.tokens));
    if (constraint_) request.constraint = constraint_();
    conversation.tokens.clear();
    if (conversation.turn + 1 < options_.turns) conversation.tokens = request.prompt;
    ThroughputRequest& record = record_of(index);
    record.prompt_tokens = int(request.prompt.size());
    record.gaps.reserve(size_t(request.sampling.max_tokens));
    record.submitted = now();
    KIVI_ASSIGN_OR_RETURN(conversation.stream, engine_.submit(std::move(request), [this, index] {
      ready_.push_back(index);
    }));
    return ok_status();
  }

  Status take(const TokenEvent& event, int index, double time) {
    if (event.error) return *event.error;
    ThroughputRequest& record = record_of(index);
    if (event.finish) record.cached_tokens = event.cached_tokens;
    if (event.id < 0) return ok_status();
    Conversation& conversation = conversations_[size_t(index)];
    if (conversation.turn + 1 < options_.turns) conversation.tokens.push_back(event.id);
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
  const ConstraintSource& constraint_;
  const int number_;  // of the run
  ThroughputRun& run_;
  const Clock::time_point begin_;
  std::vector<Conversation> conversations_;
  std::vector<int> ready_;  // conversations with events
  std::vector<TokenEvent> events_;
  int begun_ = 0;
  int finished_ = 0;
};

}  // namespace

Request throughput_request(const ThroughputOptions& options, int vocab_size, uint64_t seed, int run,
                           TurnIndex index, std::vector<int32_t> before) {
  const uint64_t place =
      uint64_t(index.conversation) * uint64_t(options.turns) + uint64_t(index.turn);
  std::mt19937_64 lengths(seed * 1'000'003 + place);
  std::seed_seq own{seed, uint64_t(run), place + 1}, shared{seed, uint64_t(run), uint64_t(0)};
  std::mt19937_64 random(own), common(shared);
  Request request;
  request.id = fmt::format("throughput-{}-{}-{}", run, index.conversation, index.turn);
  request.prompt = std::move(before);
  const auto append = [&](int count, std::mt19937_64& ids) {
    for (int i = 0; i < count; ++i) request.prompt.push_back(int32_t(ids() % uint64_t(vocab_size)));
  };
  if (index.turn == 0) append(options.prefix_len, common);
  append(draw(options.prompt_len, lengths), random);
  request.sampling.max_tokens = draw(options.output_len, lengths);
  request.sampling.ignore_eos = true;
  request.sampling.seed = random();
  return request;
}

Result<ThroughputRun> measure_throughput(Engine& engine, const ThroughputOptions& options,
                                         uint64_t seed, int in_flight, int number,
                                         const ConstraintSource& constraint) {
  ThroughputRun run;
  run.in_flight = in_flight;
  const EngineStats before = engine.stats();
  uint64_t rows = before.step_tokens;
  Reader reader(engine, options, seed, constraint, number, run);
  const Tracing tracing(engine, run.trace);
  while (!reader.done()) {
    KIVI_RETURN_IF_ERROR(reader.begin(in_flight));
    engine.step();
    const EngineStats stats = engine.stats();
    const KvBytes& kv = stats.kv_bytes;
    KIVI_ASSIGN_OR_RETURN(const int finished, reader.read());
    run.steps.push_back({reader.now(), int(stats.step_tokens - rows), stats.running + finished,
                         kv.codes + kv.parameters + kv.residual});
    rows = stats.step_tokens;
  }
  run.seconds = reader.now();
  const EngineStats after = engine.stats();
  run.preemptions = after.preemptions - before.preemptions;
  run.prefix = {after.prefix.queried - before.prefix.queried, after.prefix.hit - before.prefix.hit,
                after.prefix.reachable - before.prefix.reachable};
  return run;
}

}  // namespace kivi
