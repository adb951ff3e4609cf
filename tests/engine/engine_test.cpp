// SPDX-License-Identifier: Apache-2.0
// Engine with a runner that invents tokens, stepped by the test: finish rules, limits, failures,
// preemption, accounting.
#include "engine/engine.h"

#include <catch2/catch.hpp>
#include <set>
#include <thread>

#include "tests/engine/fake_runner.h"
#include "tests/engine/outcome.h"

using namespace kivi;
using namespace kivi::testing;
using Tokens = FakeRunnerOptions::Tokens;

namespace {

const KvFormat kPlain = {KvKind::f16, 16, 16, 0, 0};  // every token has its place in a page

FakeEngineOptions script(std::vector<int32_t> ids) {
  FakeEngineOptions options;
  options.runner.tokens = Tokens::script;
  options.runner.script = std::move(ids);
  return options;
}

Error refusal(Engine& engine, Request request) {
  const auto stream = engine.submit(std::move(request), nullptr);
  REQUIRE_FALSE(stream.ok());
  return stream.error();
}

}  // namespace

TEST_CASE("a request gets max_tokens tokens and finishes by length") {
  auto engine = make_fake_engine({});
  const Outcome out = run(*engine, request_of(10, 5));
  CHECK(out.ids.size() == 5);
  CHECK(out.last.finish == FinishReason::length);
  CHECK_FALSE(out.last.stopped_by_token);
  CHECK(out.last.times.arrival <= out.last.times.first_scheduled);
  CHECK(out.last.times.first_scheduled <= out.last.times.first_token);
  CHECK(out.last.times.first_token <= out.last.times.finished);
  check_nothing_held(*engine);
}

TEST_CASE("EOS ends a request, unless it is ignored or too early") {
  auto engine = make_fake_engine(script({10, 11, 2, 12, 2}));
  Request r = request_of(4, 8);
  SECTION("EOS stops and is delivered") {
    const Outcome out = run(*engine, r);
    CHECK(out.ids == std::vector<int32_t>{10, 11, 2});
    CHECK(out.last.finish == FinishReason::stop);
    CHECK(out.last.stopped_by_token);
  }
  SECTION("ignore_eos") {
    r.sampling.ignore_eos = true;
    const Outcome out = run(*engine, r);
    CHECK(out.ids == std::vector<int32_t>{10, 11, 2, 12, 2, 10, 11, 2});
    CHECK(out.last.finish == FinishReason::length);
  }
  SECTION("min_tokens forbids EOS until it is met") {
    r.sampling.min_tokens = 3;
    const Outcome out = run(*engine, r);  // the third token may not be 2, the fifth may
    CHECK(out.ids == std::vector<int32_t>{10, 11, 3, 12, 2});
    CHECK(out.last.finish == FinishReason::stop);
  }
  SECTION("min_tokens met exactly: the next token may be EOS") {
    r.sampling.min_tokens = 2;
    CHECK(run(*engine, r).ids == std::vector<int32_t>{10, 11, 2});
  }
}

TEST_CASE("stop_token_ids end a request, with ignore_eos too, and respect min_tokens") {
  auto engine = make_fake_engine(script({10, 11, 12, 13}));
  Request r = request_of(4, 8);
  r.sampling.stop_token_ids = {900, 12};
  r.sampling.ignore_eos = true;
  Outcome out = run(*engine, r);
  CHECK(out.ids == std::vector<int32_t>{10, 11, 12});
  CHECK(out.last.finish == FinishReason::stop);
  CHECK(out.last.stopped_by_token);

  r.sampling.min_tokens = 4;
  out = run(*engine, r);
  CHECK(out.ids == std::vector<int32_t>{10, 11, 13, 13, 10, 11, 12});
}

TEST_CASE("max_tokens 0 computes the prompt and finishes without a token") {
  FakeEngineOptions options;
  options.config.prefill_chunk_tokens = 16;
  auto engine = make_fake_engine(options);
  const bool scored = GENERATE(false, true);
  Request r = request_of(50, 0);
  if (scored) r.sampling.prompt_logprobs = 2;
  const Outcome out = run(*engine, r);
  CHECK(out.ids.empty());
  CHECK(out.last.finish == FinishReason::length);
  CHECK(engine->stats().step_tokens == 50);
  CHECK(out.prompt_logprobs.size() == (scored ? 49 : 0));
  check_nothing_held(*engine);
}

TEST_CASE("prompt logprobs come once, one a prompt token but the first, whatever the chunks") {
  for (const int chunk : {1, 3, 16, 49, 50, 64, 512}) {
    for (const PrefillMode mode : {PrefillMode::exact, PrefillMode::stream}) {
      INFO("chunk " << chunk);
      FakeEngineOptions options;
      options.config.prefill_chunk_tokens = chunk;
      options.config.kivi_prefill = mode;
      auto engine = make_fake_engine(options);
      Request r = request_of(50, 3);
      r.sampling.prompt_logprobs = 1;
      r.sampling.logprobs = 2;
      const auto stream = submit(*engine, r);
      engine->run_until_idle();
      std::vector<TokenEvent> events;
      REQUIRE(stream->drain(events));
      REQUIRE(events.size() == 4);  // prompt logprobs, then three tokens
      REQUIRE(events[0].prompt_logprobs.size() == 49);
      for (size_t i = 0; i < 49; ++i) {
        CHECK(events[0].prompt_logprobs[i].id == r.prompt[i + 1]);
        CHECK(events[0].prompt_logprobs[i].top.size() == 1);
      }
      for (size_t i = 1; i < 4; ++i) {
        CHECK(events[i].prompt_logprobs.empty());
        CHECK(events[i].top.size() == 2);
      }
    }
  }
}

TEST_CASE(
    "hidden states are pooled over all chunks, with others beside them and after preemptions") {
  const auto expected = [](const Request& r) {
    std::vector<float> out(8);
    const int tokens = int(r.prompt.size());
    for (int i = r.pooling == Pooling::last ? tokens - 1 : 0; i < tokens; ++i)
      for (int c = 0; c < 8; ++c)
        out[size_t(c)] += FakeRunner::hidden_of(r.prompt[size_t(i)], i, c);
    if (r.pooling == Pooling::mean)
      for (float& x : out) x = float(double(x) / tokens);
    return out;
  };
  bool preempted = false;
  for (const int chunk : {1, 3, 16, 64, 512})
    for (const PrefillMode mode : {PrefillMode::exact, PrefillMode::stream})
      for (const bool asynchronous : {false, true})
        for (const int pages : {12, 4096}) {
          INFO("chunk " << chunk << " pages " << pages);
          FakeEngineOptions options;
          options.config.prefill_chunk_tokens = chunk;
          options.config.kivi_prefill = mode;
          options.runner.asynchronous = asynchronous;
          options.format.residual = 32;
          options.pages = pages;
          auto engine = make_fake_engine(options);
          std::vector<Request> requests;
          std::vector<std::shared_ptr<TokenStream>> streams;
          for (int i = 0; i < 12; ++i) {
            Request r = request_of(1 + i * 37 % 300, i % 3 == 0 ? 200 : 0);
            if (i % 3 != 0) r.pooling = i % 3 == 1 ? Pooling::last : Pooling::mean;
            requests.push_back(r);
            streams.push_back(submit(*engine, r));
          }
          engine->run_until_idle();
          for (size_t i = 0; i < requests.size(); ++i) {
            const Outcome out = outcome_of(*streams[i]);
            if (requests[i].pooling == Pooling::none) {
              CHECK(out.last.hidden.empty());
              continue;
            }
            CHECK(out.ids.empty());
            CHECK(out.last.finish == FinishReason::length);
            CHECK(out.last.hidden == expected(requests[i]));
            if (requests[i].pooling == Pooling::mean) CHECK(out.last.cached_tokens == 0);
          }
          preempted = preempted || engine->stats().preemptions > 0;
          check_nothing_held(*engine);
        }
  CHECK(preempted);
}

TEST_CASE("a request that pools is refused with tokens to sample, and reuses a prefix") {
  auto engine = make_fake_engine({});
  Request r = request_of(600, 1);
  r.pooling = Pooling::last;
  CHECK(refusal(*engine, r).field == "max_tokens");
  r.sampling.max_tokens = 0;
  const Outcome first = run(*engine, r), second = run(*engine, r);
  CHECK(first.last.cached_tokens == 0);
  CHECK(second.last.cached_tokens > 0);
  CHECK(second.last.hidden == first.last.hidden);
  r.pooling = Pooling::mean;  // needs every token's
  CHECK(run(*engine, r).last.cached_tokens == 0);
}

TEST_CASE("max_tokens is cut to the context, and a prompt that leaves no room is refused") {
  FakeEngineOptions options;
  options.max_model_len = 100;
  SECTION("by the model's length") {}
  SECTION("by what the cache holds") {
    options.max_model_len = 2048;
    options.pages = 2;  // 128 tokens, and 127 in the residual
  }
  const int context = options.pages == 2 ? 255 : 100;
  auto engine = make_fake_engine(options);
  Outcome out = run(*engine, request_of(context - 10, 1000));
  CHECK(out.ids.size() == 10);
  CHECK(out.last.finish == FinishReason::length);
  CHECK(run(*engine, request_of(context - 1, 5)).ids.size() == 1);
  CHECK(run(*engine, request_of(context, 0)).last.finish == FinishReason::length);

  const Error error = refusal(*engine, request_of(context, 1));
  CHECK(error.code == ErrorCode::context_length);
  CHECK(error.field == "prompt");
  CHECK(error.message.find(std::to_string(context)) != std::string::npos);
  CHECK(refusal(*engine, request_of(context + 1, 0)).code == ErrorCode::context_length);
}

TEST_CASE("bad requests are refused before they reach the engine thread") {
  auto engine = make_fake_engine({});
  CHECK(refusal(*engine, request_of(0, 5)).field == "prompt");
  Request r = request_of(3, 5);
  r.prompt[1] = 1000;  // the vocabulary has 1000
  CHECK(refusal(*engine, r).field == "prompt");
  r.prompt[1] = -1;
  CHECK(refusal(*engine, r).field == "prompt");
  r = request_of(3, 5);
  r.sampling.top_p = 0;
  CHECK(refusal(*engine, r).field == "top_p");
  CHECK_FALSE(engine->step());
}

TEST_CASE("a deadline ends a request wherever it is") {
  auto engine = make_fake_engine({});
  Request r = request_of(10, 1000);
  SECTION("before it was scheduled") { r.deadline = Clock::now(); }
  SECTION("while it runs") { r.deadline = Clock::now() + std::chrono::milliseconds(5); }
  const auto stream = submit(*engine, r);
  std::this_thread::sleep_until(*r.deadline - std::chrono::milliseconds(2));
  engine->step();
  std::this_thread::sleep_until(*r.deadline + std::chrono::milliseconds(1));
  engine->step();
  const Outcome out = outcome_of(*stream);
  CHECK(out.last.finish == FinishReason::abort);
  REQUIRE(out.last.error.has_value());
  CHECK(out.last.error->code == ErrorCode::deadline);
  check_nothing_held(*engine);
}

TEST_CASE("a cancelled request ends at the next step with the reason given") {
  auto engine = make_fake_engine({});
  const auto stream = submit(*engine, request_of(10, 1000));
  for (int i = 0; i < 3; ++i) engine->step();
  stream->cancel(FinishReason::stop);
  engine->step();
  const Outcome out = outcome_of(*stream);
  CHECK(out.ids.size() == 3);
  CHECK(out.last.finish == FinishReason::stop);
  CHECK_FALSE(out.last.stopped_by_token);
  check_nothing_held(*engine);
}

TEST_CASE("abort ends all requests of an id and of its choices, and nothing else") {
  auto engine = make_fake_engine({});
  std::vector<std::shared_ptr<TokenStream>> streams;
  for (const char* id : {"a", "a", "a/0", "a/12", "ab", "a0", "b/a"}) {
    Request r = request_of(10, 100);
    r.id = std::string(id);
    streams.push_back(submit(*engine, r));
  }
  engine->step();
  CHECK(engine->abort("a"));
  CHECK_FALSE(engine->abort("c"));
  engine->step();
  std::vector<TokenEvent> events;
  for (size_t i = 0; i < streams.size(); ++i) CHECK(streams[i]->drain(events) == (i < 4));
  CHECK_FALSE(engine->abort("a"));
  engine->abort_all();
  engine->step();
  for (const auto& stream : streams) CHECK(stream->drain(events));
  check_nothing_held(*engine);
}

TEST_CASE("a step that fails hurts the requests in it and no others") {
  FakeEngineOptions options;
  options.config.max_num_seqs = 2;
  options.runner.fail_at_step = 1;
  auto engine = make_fake_engine(options);
  std::vector<std::shared_ptr<TokenStream>> streams;
  for (int i = 0; i < 4; ++i) streams.push_back(submit(*engine, request_of(10, 4)));
  engine->run_until_idle();
  for (size_t i = 0; i < 4; ++i) {
    const Outcome out = outcome_of(*streams[i]);
    CHECK(out.last.finish == (i < 2 ? FinishReason::error : FinishReason::length));
    CHECK(out.ids.size() == (i < 2 ? 1 : 4));
    CHECK(out.last.error.has_value() == (i < 2));
  }
  CHECK(run(*engine, request_of(10, 4)).ids.size() == 4);  // the server goes on
  check_nothing_held(*engine);
}

TEST_CASE("tokens do not depend on company, chunks, preemption or policy") {
  const auto run_all = [](FakeEngineOptions options, uint64_t* preemptions) {
    auto engine = make_fake_engine(options);
    std::vector<std::shared_ptr<TokenStream>> streams;
    for (int i = 0; i < 12; ++i) {
      Request r = request_of(20 + 13 * i, 150);
      r.sampling.seed = uint64_t(i);
      r.sampling.prompt_logprobs = 0;
      r.priority = i % 3;
      streams.push_back(submit(*engine, r));
    }
    engine->run_until_idle();
    check_nothing_held(*engine);
    *preemptions = engine->stats().preemptions;
    std::vector<std::vector<int32_t>> ids;
    for (size_t i = 0; i < streams.size(); ++i) {
      const Outcome out = outcome_of(*streams[i]);
      CHECK(out.prompt_logprobs.size() == 19 + 13 * i);
      ids.push_back(out.ids);
    }
    return ids;
  };
  uint64_t preemptions = 0;
  const auto expected = run_all({}, &preemptions);
  CHECK(preemptions == 0);
  for (const SchedulingPolicy policy : {SchedulingPolicy::fcfs, SchedulingPolicy::priority}) {
    for (const PrefillMode mode : {PrefillMode::exact, PrefillMode::stream}) {
      FakeEngineOptions small;
      small.pages = 8;
      small.max_model_len = 400;
      small.config.prefill_chunk_tokens = 48;
      small.config.max_num_seqs = 6;
      small.config.max_num_batched_tokens = 64;
      small.config.kivi_prefill = mode;
      small.config.scheduling_policy = policy;
      CHECK(run_all(small, &preemptions) == expected);
      CHECK(preemptions > 0);
    }
  }
}

TEST_CASE("a prompt that is preempted half-way is scored again from its start, once") {
  FakeEngineOptions options;
  options.format = kPlain;
  options.pages = 6;
  options.config.prefill_chunk_tokens = 64;
  options.config.kivi_prefill = PrefillMode::stream;
  auto engine = make_fake_engine(options);
  // Three that fill a page each and then want the next one; a fourth in the middle of its prompt.
  for (int i = 0; i < 3; ++i) submit(*engine, request_of(64, 20));
  Request r = request_of(128, 3);
  r.sampling.prompt_logprobs = 0;
  const auto stream = submit(*engine, r);
  engine->step();
  CHECK(engine->stats().running == 4);
  engine->step();
  CHECK(engine->stats().preemptions == 1);
  engine->run_until_idle();
  const Outcome out = outcome_of(*stream);
  CHECK(out.ids.size() == 3);
  REQUIRE(out.prompt_logprobs.size() == 127);
  for (size_t i = 0; i < 127; ++i) CHECK(out.prompt_logprobs[i].id == r.prompt[i + 1]);
}

TEST_CASE("a prompt in staging is not preempted for pages that it does not hold") {
  FakeEngineOptions options;
  options.format.residual = 32;
  options.pages = 7;
  options.config.prefill_chunk_tokens = 96;
  options.config.enable_prefix_caching = false;  // the prompts are the same
  auto engine = make_fake_engine(options);
  std::vector<std::shared_ptr<TokenStream>> streams;
  // Of 95 tokens 64 keys are in a page; the next token completes 32 more.
  for (int i = 0; i < 4; ++i) streams.push_back(submit(*engine, request_of(95, 20)));
  streams.push_back(submit(*engine, request_of(128, 20)));
  engine->step();
  CHECK(engine->stats().running == 5);
  engine->step();  // three take the last pages; the fourth and the prompt wait
  CHECK(engine->stats().kv_pages_free == 0);
  CHECK(engine->stats().running == 5);
  CHECK(engine->stats().preemptions == 0);
  engine->run_until_idle();
  for (const auto& stream : streams) CHECK(outcome_of(*stream).ids.size() == 20);
}

TEST_CASE("a prompt of exactly prefill_staging_tokens is staged, a longer one is not") {
  FakeEngineOptions options;
  options.format.residual = 32;
  options.config.prefill_chunk_tokens = 96;
  options.config.prefill_staging_tokens = 256;
  for (const int prompt : {256, 257}) {
    const auto engine = make_fake_engine(options);
    submit(*engine, request_of(prompt, 1));
    engine->step();
    const EngineStats stats = engine->stats();
    INFO(prompt << ": " << stats.staging_pages_free << " of " << stats.staging_pages_total);
    CHECK((stats.staging_pages_free < stats.staging_pages_total) == (prompt == 256));
    engine->run_until_idle();
  }
}

TEST_CASE("under policy priority the lowest number is served first") {
  FakeEngineOptions options;
  options.config.max_num_seqs = 1;
  options.config.scheduling_policy = SchedulingPolicy::priority;
  auto engine = make_fake_engine(options);
  std::vector<std::shared_ptr<TokenStream>> streams;
  for (const int priority : {5, 0, -3, 0}) {
    Request r = request_of(10, 3);
    r.priority = priority;
    streams.push_back(submit(*engine, r));
  }
  engine->run_until_idle();
  std::vector<Clock::time_point> begun;
  for (const auto& stream : streams)
    begun.push_back(outcome_of(*stream).last.times.first_scheduled);
  CHECK((begun[2] < begun[1] && begun[1] < begun[3] && begun[3] < begun[0]));
}

TEST_CASE("queue limits are exact, by requests and by tokens, and free themselves") {
  FakeEngineOptions options;
  options.config.max_num_seqs = 2;
  options.config.max_num_queued_reqs = 3;
  options.config.max_num_queued_tokens = 100;
  auto engine = make_fake_engine(options);
  SECTION("requests") {
    for (int i = 0; i < 3; ++i) submit(*engine, request_of(1, 3));
    const Error error = refusal(*engine, request_of(1, 3));
    CHECK(error.code == ErrorCode::resource_exhausted);
    CHECK(error.message.find("max_num_queued_reqs 3") != std::string::npos);
    engine->step();  // two run, one waits
    submit(*engine, request_of(1, 3));
    submit(*engine, request_of(1, 3));
    CHECK(refusal(*engine, request_of(1, 3)).code == ErrorCode::resource_exhausted);
  }
  SECTION("tokens") {
    submit(*engine, request_of(60, 3));
    submit(*engine, request_of(40, 3));
    const Error error = refusal(*engine, request_of(1, 3));
    CHECK(error.code == ErrorCode::resource_exhausted);
    CHECK(error.message.find("max_num_queued_tokens 100") != std::string::npos);
    engine->step();
    submit(*engine, request_of(100, 3));
    CHECK(refusal(*engine, request_of(1, 3)).code == ErrorCode::resource_exhausted);
  }
  SECTION("cancelled while it waits") {
    std::vector<std::shared_ptr<TokenStream>> streams;
    for (int i = 0; i < 3; ++i) streams.push_back(submit(*engine, request_of(30, 3)));
    for (const auto& stream : streams) stream->cancel();
    engine->step();
    for (int i = 0; i < 3; ++i) submit(*engine, request_of(30, 3));
    CHECK(refusal(*engine, request_of(1, 3)).code == ErrorCode::resource_exhausted);
  }
  engine->run_until_idle();
  check_nothing_held(*engine);
}

TEST_CASE("a preempted request is not counted against the queue limits") {
  FakeEngineOptions options;
  options.format = kPlain;
  options.pages = 4;
  options.config.max_num_queued_reqs = 2;
  auto engine = make_fake_engine(options);
  const auto first = submit(*engine, request_of(60, 150));
  const auto second = submit(*engine, request_of(60, 150));
  while (engine->stats().preemptions == 0) REQUIRE(engine->step());
  CHECK(engine->stats().waiting == 1);
  submit(*engine, request_of(1, 1));
  submit(*engine, request_of(1, 1));
  CHECK(refusal(*engine, request_of(1, 1)).code == ErrorCode::resource_exhausted);
  engine->run_until_idle();
  CHECK(outcome_of(*first).ids.size() == 150);
  CHECK(outcome_of(*second).ids.size() == 150);
}

TEST_CASE("a request's seed decides its tokens; without one the engine's seed and turn do") {
  const auto unseeded = [](uint64_t engine_seed) {
    FakeEngineOptions options;
    options.config.seed = engine_seed;
    auto engine = make_fake_engine(options);
    Request r = request_of(10, 8);
    r.sampling.seed.reset();
    return std::vector{run(*engine, r).ids, run(*engine, r).ids};
  };
  const auto a = unseeded(1);
  CHECK(a[0] != a[1]);
  CHECK(a == unseeded(1));
  CHECK(a[0] != unseeded(2)[0]);

  auto engine = make_fake_engine({});
  CHECK(run(*engine, request_of(10, 8)).ids == run(*engine, request_of(10, 8)).ids);
}

TEST_CASE("counters equal what the readers saw") {
  FakeEngineOptions options = script({10, 11, 12, 2});
  options.pages = 6;
  options.config.prefill_chunk_tokens = 32;
  auto engine = make_fake_engine(options);
  int64_t observed_rows = 0;
  engine->on_step([&](int rows, double seconds) {
    observed_rows += rows;
    CHECK(seconds >= 0);
  });
  std::vector<std::shared_ptr<TokenStream>> streams;
  uint64_t prompt_tokens = 0;
  for (int i = 1; i <= 20; ++i) {
    Request r = request_of(7 * i, i % 5);
    r.sampling.ignore_eos = i % 2 == 0;
    prompt_tokens += r.prompt.size();
    streams.push_back(submit(*engine, r));
  }
  engine->run_until_idle();
  size_t tokens = 0;
  uint64_t finished[4] = {};
  for (const auto& stream : streams) {
    const Outcome out = outcome_of(*stream);
    tokens += out.ids.size();
    ++finished[int(*out.last.finish)];
  }
  const EngineStats stats = engine->stats();
  CHECK(stats.generation_tokens == tokens);
  CHECK(stats.prompt_tokens == prompt_tokens);
  for (int reason = 0; reason < 4; ++reason) CHECK(stats.finished[reason] == finished[reason]);
  CHECK(finished[int(FinishReason::stop)] > 0);
  CHECK(stats.step_tokens == uint64_t(observed_rows));
  check_nothing_held(*engine);
}

TEST_CASE("stats show what is held while a request runs") {
  auto engine = make_fake_engine({});
  submit(*engine, request_of(150, 50));  // 128 keys in pages, 22 in the residual
  CHECK(engine->stats().waiting == 1);
  engine->step();
  const EngineStats stats = engine->stats();
  CHECK(stats.running == 1);
  CHECK(stats.waiting == 0);
  // Two pages of tokens, and those of the checkpoint that the prompt's last boundary has.
  const int slab_pages = PrefixBlocks::of({FakeEngineOptions{}.format, {1, 1, 64}}).slab_pages;
  CHECK(stats.kv_pages_total - stats.kv_pages_free == 2 + slab_pages);
  CHECK(stats.kv_slots_total - stats.kv_slots_free == 1);
  CHECK(stats.kv_bytes.codes > 0);
  CHECK(stats.kv_bytes.residual > 0);
  engine->run_until_idle();
  check_nothing_held(*engine);
}
