// SPDX-License-Identifier: Apache-2.0
// The engine simulation: the real Engine, driven step by step, with a runner that keeps a simulated
// store. A seed decides the sizes, the policy, whether steps overlap, arrivals, lengths, cancels,
// aborts and failing steps. Every planned row must find its whole history, every request must end
// exactly once with the tokens that it would have got alone, and nothing may be held at the end.
#include <fmt/format.h>

#include <catch2/catch.hpp>
#include <set>

#include "tests/engine/fake_runner.h"
#include "tests/engine/simulation.h"

using namespace kivi;
using namespace kivi::testing;

namespace {

enum class Fault { none, write_lost, slot_swapped, pages_swapped };

// What the runner has seen. Shared with the test, because the engine owns the runner.
struct Witness {
  Witness(const KvLayout& layout, const KvCapacity& capacity, const TierWorld& tier_world)
      : tier(tier_world),
        held_store(std::make_shared<SimulatedStore>(layout, capacity, tier.host_pages)),
        store(*held_store) {}
  TierWorld tier;
  std::shared_ptr<SimulatedStore> held_store;  // by the disk too
  SimulatedStore& store;
  std::string failure;  // the first one
  int64_t launched = 0;
  int64_t overlapping = 0;  // launches with another step under way
  bool planted = false;
};

// A FakeRunner whose steps also go through the simulated store, in the order of their launches.
class CheckedRunner : public FakeRunner {
 public:
  CheckedRunner(FakeRunnerOptions options, std::shared_ptr<Witness> witness, KvFormat format,
                Fault fault, int64_t fault_step)
      : FakeRunner(std::move(options)),
        witness_(std::move(witness)),
        format_(format),
        fault_(fault),
        fault_step_(fault_step) {}

  void launch(const BatchPlan& plan) override {
    if (fault_ != Fault::none && witness_->launched >= fault_step_ && !witness_->planted)
      witness_->planted = plant(plan);
    ++witness_->launched;
    witness_->overlapping += in_flight_++ > 0;
    try {
      check_slots(plan);
      witness_->store.compute(plan);
    } catch (const std::exception& e) {
      if (witness_->failure.empty()) witness_->failure = e.what();
    }
    FakeRunner::launch(plan);
  }
  void transfer(std::span<const KvTransfer> transfers) override {
    witness_->store.transfer(transfers);
  }
  uint64_t transfers_done() override {
    try {
      witness_->tier.move(witness_->store);
    } catch (const std::exception& e) {
      if (witness_->failure.empty()) witness_->failure = e.what();
    }
    return witness_->store.transfers_done();
  }
  Result<std::vector<StepResult>> collect() override {
    --in_flight_;
    return FakeRunner::collect();
  }

 private:
  static void check_slots(const BatchPlan& plan) {
    std::set<int32_t> slots;
    for (const PlannedSequence& part : plan.sequences)
      expect(part.sequence->kv.slot >= 0 && slots.insert(part.sequence->kv.slot).second,
             "a slot has one holder");
    for (const PlannedCapture& capture : plan.captures)
      expect(slots.insert(capture.slot).second, "a slot has one holder");
  }

  bool plant(const BatchPlan& plan) {
    if (fault_ == Fault::write_lost) {
      witness_->store.lose_next_write();
      return true;
    }
    std::vector<Sequence*> decoding;
    for (const PlannedSequence& part : plan.sequences)
      if (part.count == 1 && part.past > 0 && part.mode == KvMode::append)
        decoding.push_back(part.sequence);
    if (decoding.size() < 2) return false;
    SequenceKv& a = decoding[0]->kv;
    SequenceKv& b = decoding[1]->kv;
    if (fault_ == Fault::slot_swapped) {
      const bool reads_residual =
          format_.kind == KvKind::kivi && keys_paged(format_, a.tokens) < a.tokens;
      if (!reads_residual) return false;
      std::swap(a.slot, b.slot);
      return true;
    }
    if (a.pages.empty() || b.pages.empty()) return false;
    if (keys_paged(format_, a.tokens) == 0) return false;
    std::swap(a.pages[0], b.pages[0]);  // both are still given back once
    return true;
  }

  const std::shared_ptr<Witness> witness_;
  const KvFormat format_;
  const Fault fault_;
  const int64_t fault_step_;
  int in_flight_ = 0;
};

constexpr int kVocab = 1000;
constexpr int kContext = 512;

struct World {
  explicit World(uint32_t seed) : random(seed), tier(seed, seed % 2 == 1), prompts(random, 300) {
    const KvFormat formats[] = {{KvKind::f16, 16, 16, 0, 0},
                                {KvKind::f8, 8, 8, 0, 0},
                                {KvKind::kivi, 2, 2, 32, 32},
                                {KvKind::kivi, 4, 2, 32, 128},
                                {KvKind::kivi, 2, 2, 64, 64, /*sinks=*/64, /*parameter_bits=*/8}};
    format = formats[between(random, 0, 4)];
    asynchronous = random() % 4 != 0;
    config.scheduling_policy = SchedulingPolicy(random() % 3);
    config.kivi_prefill = random() % 2 ? PrefillMode::exact : PrefillMode::stream;
    config.max_num_seqs = between(random, 1, 8);
    config.prefill_chunk_tokens = between(random, 1, 100);
    config.max_num_batched_tokens =
        config.max_num_seqs + config.prefill_chunk_tokens + between(random, 0, 200);
    config.prefill_staging_tokens = random() % 3 ? between(random, 0, 600) : 0;
    config.enable_prefix_caching = random() % 4 != 0;
    layerwise_tokens = random() % 2 ? between(random, 0, 512) : 0;
    pages = random() % 3 ? between(random, 10, 24) : 200;
    tenants = between(random, 1, 4);
    requests = between(random, 1, 30);
    arrival_percent = between(random, 5, 100);
    cancel_per_mille = random() % 2 ? between(random, 0, 40) : 0;
    fail_at_step = random() % 4 == 0 ? between(random, 0, 100) : -1;
    drains = random() % 5 == 0;
    if (!config.enable_prefix_caching) tier.host_pages = 0;
    // The engine takes the times of steps from the clock. So nothing is said of those of transfers:
    // then `automatic` does not depend on them.
    config.kv_fetch = tier.fetch;
  }
  std::string describe() const {
    return fmt::format(
        "format {} R {}, prefill {}, policy {}, overlapping steps {}, max_num_seqs {}, chunk {}, "
        "max_num_batched_tokens {}, staging {}, layer by layer to {}, pages {}, tenants {}, "
        "requests {}, arrivals {} %, cancels {} of 1000, fail_at_step {}, drain {}, host pages {}, "
        "disk {} with {} % failures, fetch {}",
        name_of(format), format.residual,
        config.kivi_prefill == PrefillMode::exact ? "exact" : "stream",
        int(config.scheduling_policy), asynchronous, config.max_num_seqs,
        config.prefill_chunk_tokens, config.max_num_batched_tokens, config.prefill_staging_tokens,
        layerwise_tokens, pages, tenants, requests, arrival_percent, cancel_per_mille, fail_at_step,
        drains, tier.host_pages, tier.has_disk, tier.disk_failures_percent, int(tier.fetch));
  }

  Random random;
  TierWorld tier;
  Prompts prompts;
  KvFormat format;
  EngineConfig config;
  bool asynchronous, drains;
  int layerwise_tokens, pages, tenants, requests, arrival_percent, cancel_per_mille, fail_at_step;
};

Request draw_request(World& w, int index) {
  Request r;
  r.id = fmt::format("request-{}", index);
  r.tenant = std::to_string(between(w.random, 1, w.tenants));
  r.priority = between(w.random, -1, 1);
  r.prompt = w.prompts.draw(w.random, between(w.random, 1, 300));
  r.cache = w.random() % 10 != 0;
  SamplingParams& p = r.sampling;
  p.seed = w.random();
  p.max_tokens = between(w.random, 0, 150);
  if (w.random() % 4 == 0) p.presence_penalty = 0.5f;
  if (w.random() % 5 == 0) p.prompt_logprobs = 1;
  for (int i = between(w.random, 0, 10); i > 0; --i)
    p.stop_token_ids.push_back(between(w.random, 3, kVocab - 1));
  if (w.random() % 40 == 0) r.deadline = Clock::now() - std::chrono::seconds(1);
  return r;
}

struct Ending {
  std::vector<int32_t> ids;
  std::vector<FinishReason> finishes;
};

Ending ending_of(TokenStream& stream) {
  Ending ending;
  std::vector<TokenEvent> events;
  stream.drain(events);
  for (const TokenEvent& e : events) {
    expect(ending.finishes.empty(), "nothing follows a request's last event");
    if (e.id >= 0) ending.ids.push_back(e.id);
    if (e.finish) ending.finishes.push_back(*e.finish);
  }
  return ending;
}

FakeRunnerOptions runner_options(bool asynchronous, int fail_at_step) {
  FakeRunnerOptions options;
  options.vocab_size = kVocab;
  options.asynchronous = asynchronous;
  options.fail_at_step = fail_at_step;
  return options;
}

// What a request gets alone, in an engine with room for everything.
Ending alone(Request request) {
  request.deadline.reset();
  FakeEngineOptions options;
  options.max_model_len = kContext;
  options.runner = runner_options(false, -1);
  const auto engine = make_fake_engine(options);
  auto stream = engine->submit(std::move(request), [] {});
  expect(stream.ok(), "the request is valid");
  engine->run_until_idle();
  return ending_of(**stream);
}

struct Counts {
  uint64_t preemptions = 0;
  int64_t overlapping = 0;
  int cancelled = 0;
  uint64_t tokens_fetched = 0;
};

// Runs the world of a seed; throws what its checks find. True where a fault was planted.
bool simulate(World w, Fault fault, Counts& counts) {
  if (fault != Fault::none) w.cancel_per_mille = 0, w.fail_at_step = -1, w.drains = false;
  const KvLayout layout{w.format, {3, 1, 128}};
  const KvCapacity capacity{w.pages, w.config.max_num_seqs + 1,
                            w.config.prefill_staging_tokens / 64, w.layerwise_tokens};
  const auto witness = std::make_shared<Witness>(layout, capacity, w.tier);
  Engine engine(w.config, EngineLimits{kVocab, kContext, {2}}, layout, capacity,
                std::make_unique<CheckedRunner>(runner_options(w.asynchronous, w.fail_at_step),
                                                witness, w.format, fault, 5),
                witness->tier.setup(witness->held_store));
  std::vector<Request> requests;
  std::vector<std::shared_ptr<TokenStream>> streams;
  bool drained = false;
  const auto check = [&] {
    if (!witness->failure.empty()) throw std::runtime_error(witness->failure);
  };
  for (int step = 0; !drained && int(requests.size()) < w.requests; ++step) {
    while (int(requests.size()) < w.requests && between(w.random, 1, 100) <= w.arrival_percent) {
      Request request = draw_request(w, int(requests.size()));
      auto stream = engine.submit(request, [] {});
      expect(stream.ok(), "the request is taken");
      requests.push_back(std::move(request));
      streams.push_back(*stream);
    }
    for (size_t i = 0; i < streams.size(); ++i) {
      if (between(w.random, 1, 1000) > w.cancel_per_mille) continue;
      ++counts.cancelled;
      if (w.random() % 2)
        streams[i]->cancel();
      else
        engine.abort(requests[i].id);  // false if it has ended
    }
    if (w.drains && step > 20 && w.random() % 20 == 0) {
      drained = true;
      engine.drain(std::chrono::milliseconds(0));
      expect(!engine.submit(draw_request(w, 0), [] {}).ok(), "a draining engine takes nothing");
    }
    engine.step();
    check();
  }
  for (int steps = 0; engine.step(); ++steps) {
    check();
    expect(steps < 100'000, "it ends");
  }
  check();

  for (size_t i = 0; i < streams.size(); ++i) {
    const Ending ending = ending_of(*streams[i]);
    expect(ending.finishes.size() == 1, "every request ends exactly once");
    const Ending expected = alone(requests[i]);
    expect(ending.ids.size() <= expected.ids.size() &&
               std::equal(ending.ids.begin(), ending.ids.end(), expected.ids.begin()),
           "a request gets the tokens that it gets alone");
    const FinishReason reason = ending.finishes[0];
    if (reason == FinishReason::stop || reason == FinishReason::length)
      expect(ending.ids == expected.ids && reason == expected.finishes[0],
             "a request that ends by itself has all its tokens");
    if (w.cancel_per_mille == 0 && w.fail_at_step < 0 && !w.drains && !requests[i].deadline)
      expect(reason == expected.finishes[0], "nothing ends without a reason");
  }
  const EngineStats stats = engine.stats();
  expect(stats.running == 0 && stats.waiting == 0 && stats.waiting_tokens == 0, "nothing is left");
  expect(stats.kv_pages_free == stats.kv_pages_total, "no page is held at the end");
  expect(stats.kv_slots_free == stats.kv_slots_total, "no slot is held at the end");
  expect(stats.staging_pages_free == stats.staging_pages_total, "no staging page is held");
  expect(stats.kv_bytes == KvBytes{}, "no byte is held at the end");
  counts.preemptions += stats.preemptions;
  counts.overlapping += witness->overlapping;
  counts.tokens_fetched += stats.tier.tokens_fetched;
  return witness->planted;
}

}  // namespace

TEST_CASE("the engine keeps every request's history, for whatever a seed decides") {
  Counts counts;
  const bool all = for_each_seed(300, [&](uint32_t seed) {
    const World world(seed);
    INFO("KIVI_SIMULATION_SEED=" << seed << ": " << world.describe());
    REQUIRE_NOTHROW(simulate(world, Fault::none, counts));
  });
  if (!all) return;
  CHECK(counts.preemptions > 100);
  CHECK(counts.overlapping > 1000);
  CHECK(counts.cancelled > 100);
  CHECK(counts.tokens_fetched > 1000);
}

TEST_CASE("the engine simulation finds every fault that is planted", "[long]") {
  const auto [fault, name] = GENERATE(table<Fault, const char*>({
      {Fault::write_lost, "a write is lost"},
      {Fault::slot_swapped, "two slots are swapped"},
      {Fault::pages_swapped, "two pages are swapped"},
  }));
  INFO(name);
  int planted = 0, found = 0;
  Counts counts;
  for (uint32_t seed = 1; seed <= 100; ++seed) {
    bool was_planted = false;
    try {
      was_planted = simulate(World(seed), fault, counts);
    } catch (const std::exception&) {
      ++found;
      was_planted = true;
    }
    planted += was_planted;
  }
  INFO(planted << " planted, " << found << " found");
  CHECK(found >= 5);
  // A lost write is not found if its sequence ends or is preempted before it is read.
  CHECK(found >= planted * 3 / 4);
}
