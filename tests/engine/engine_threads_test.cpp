// SPDX-License-Identifier: Apache-2.0
// Engine with its own thread: submitting, cancelling and draining from many threads, shutdown,
// idleness. Runs under ThreadSanitizer too.
#include <catch2/catch.hpp>
#include <condition_variable>
#include <ctime>
#include <mutex>
#include <random>
#include <thread>

#include "tests/engine/fake_runner.h"
#include "tests/engine/outcome.h"

using namespace kivi;
using namespace kivi::testing;
using namespace std::chrono_literals;

namespace {

// A reader that sleeps until its stream has something.
class Reader {
 public:
  // Null where the engine refused.
  static std::unique_ptr<Reader> submit(Engine& engine, Request request) {
    auto reader = std::make_unique<Reader>();
    auto stream = engine.submit(std::move(request), [bell = reader->bell_] { bell->ring(); });
    if (!stream.ok()) return nullptr;
    reader->stream_ = std::move(*stream);
    return reader;
  }

  TokenStream& stream() { return *stream_; }

  // Waits until at least `count` events are in, or the end.
  void read(size_t count) {
    while (!stream_->drain(events) && events.size() < count) bell_->wait();
  }
  void read_to_end() { read(size_t(-1)); }

  std::vector<TokenEvent> events;

 private:
  // Shared with `notify`, which may come after the reader has seen the end and gone.
  struct Bell {
    void ring() {
      const std::lock_guard lock(mutex);
      rung = true;
      changed.notify_one();
    }
    void wait() {
      std::unique_lock lock(mutex);
      changed.wait(lock, [&] { return rung; });
      rung = false;
    }
    std::mutex mutex;
    std::condition_variable changed;
    bool rung = false;
  };

  std::shared_ptr<Bell> bell_ = std::make_shared<Bell>();
  std::shared_ptr<TokenStream> stream_;
};

double process_cpu_ms() {
  timespec t{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return double(t.tv_sec) * 1e3 + double(t.tv_nsec) * 1e-6;
}

// Events are delivered before the request is retired, so only a drain knows that all is over.
void check_all_free(Engine& engine) {
  CHECK(engine.drain(10s));
  check_nothing_held(engine);
}

}  // namespace

TEST_CASE("16 threads submit and cancel: every request ends once and nothing is held") {
  constexpr int kThreads = 16;
  constexpr int kRequests = 100;  // a thread
  FakeEngineOptions options;
  options.runner.asynchronous = GENERATE(false, true);
  options.pages = 40;
  options.max_model_len = 600;
  options.config.max_num_seqs = 12;
  options.config.prefill_chunk_tokens = 64;
  options.config.max_num_batched_tokens = 256;
  options.config.max_num_queued_reqs = 64;
  auto engine = make_fake_engine(options);
  engine->start();

  std::atomic<int> ended{0}, refused{0}, broken{0};
  std::atomic<uint64_t> tokens_read{0};
  const auto client = [&](uint32_t seed) {
    std::mt19937 random(seed);
    for (int i = 0; i < kRequests; ++i) {
      Request r = request_of(1 + int(random() % 300), int(random() % 60));
      r.id = "t" + std::to_string(seed) + "-" + std::to_string(i);
      if (random() % 8 == 0) r.deadline = Clock::now() + std::chrono::microseconds(random() % 3000);
      const auto reader = Reader::submit(*engine, r);
      if (!reader) {
        ++refused;
        std::this_thread::yield();
        continue;
      }
      const auto way = random() % 4;
      if (way == 0) reader->read(1 + random() % 10);
      if (way <= 1)
        reader->stream().cancel(random() % 2 ? FinishReason::abort : FinishReason::stop);
      if (way == 2) engine->abort(r.id);
      if (random() % 16 == 0) static_cast<void>(engine->stats());
      reader->read_to_end();
      int finals = 0;
      for (const TokenEvent& event : reader->events) {
        finals += event.finish.has_value();
        tokens_read += event.id >= 0;
      }
      ended += finals;
      broken += finals != 1 || !reader->events.back().finish;
    }
  };
  {
    std::vector<std::jthread> clients;
    for (uint32_t t = 0; t < kThreads; ++t) clients.emplace_back(client, t + 1);
  }
  CHECK(broken == 0);
  CHECK(ended + refused == kThreads * kRequests);
  CHECK(ended > kThreads * kRequests / 2);
  CHECK(engine->stats().generation_tokens == tokens_read);
  check_all_free(*engine);
}

TEST_CASE("a thousand requests, half of them cancelled mid-way, leave everything free") {
  FakeEngineOptions options;
  options.pages = 200;
  options.runner.asynchronous = GENERATE(false, true);
  auto engine = make_fake_engine(options);
  engine->start();
  std::vector<std::unique_ptr<Reader>> readers;
  for (int i = 0; i < 1000; ++i) {
    readers.push_back(Reader::submit(*engine, request_of(1 + i % 90, 40)));
    REQUIRE(readers.back() != nullptr);
  }
  for (size_t i = 0; i < readers.size(); i += 2) {
    readers[i]->read(1 + i % 7);
    readers[i]->stream().cancel();
  }
  for (const auto& reader : readers) reader->read_to_end();
  for (size_t i = 1; i < readers.size(); i += 2)
    CHECK(outcome_of(readers[i]->events).ids.size() == 40);
  check_all_free(*engine);
}

TEST_CASE("threads that race for the queue get exactly its places") {
  FakeEngineOptions options;
  options.config.max_num_queued_reqs = 100;
  auto engine = make_fake_engine(options);  // not started: nothing leaves the queue
  std::atomic<int> accepted{0};
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < 8; ++t)
      threads.emplace_back([&] {
        for (int i = 0; i < 50; ++i) accepted += engine->submit(request_of(3, 3), nullptr).ok();
      });
  }
  CHECK(accepted == 100);
  CHECK(engine->stats().waiting == 100);
}

TEST_CASE("drain takes nothing new, lets the running work end, and says so") {
  FakeEngineOptions options;
  options.runner.step_delay = 1ms;
  auto engine = make_fake_engine(options);
  engine->start();
  const auto reader = Reader::submit(*engine, request_of(10, 30));
  REQUIRE(reader);
  bool drained = false;
  std::jthread drainer([&] { drained = engine->drain(10s); });
  for (;;) {  // until the drain has begun; the queue may fill before
    const auto late = engine->submit(request_of(10, 1), nullptr);
    if (!late.ok() && late.error().code == ErrorCode::unavailable) break;
    std::this_thread::sleep_for(1ms);
  }
  reader->read_to_end();
  drainer.join();
  CHECK(drained);
  CHECK(outcome_of(reader->events).ids.size() == 30);
}

TEST_CASE("drain aborts what its time was not enough for") {
  FakeEngineOptions options;
  options.runner.step_delay = 1ms;
  auto engine = make_fake_engine(options);
  engine->start();
  const auto reader = Reader::submit(*engine, request_of(10, 2000));
  REQUIRE(reader);
  CHECK_FALSE(engine->drain(20ms));
  reader->read_to_end();
  CHECK(outcome_of(reader->events).last.finish == FinishReason::abort);
  check_all_free(*engine);
}

TEST_CASE("an engine that is destroyed ends every request with abort, running or waiting") {
  FakeEngineOptions options;
  options.config.max_num_seqs = 2;
  options.runner.step_delay = 1ms;
  const bool started = GENERATE(true, false);
  auto engine = make_fake_engine(options);
  if (started) engine->start();
  std::vector<std::unique_ptr<Reader>> readers;
  for (int i = 0; i < 5; ++i) readers.push_back(Reader::submit(*engine, request_of(10, 2000)));
  if (started) readers[0]->read(2);
  engine.reset();
  for (const auto& reader : readers) {
    reader->read_to_end();
    CHECK(outcome_of(reader->events).last.finish == FinishReason::abort);
  }
}

TEST_CASE("a reader that is gone without a word costs no more than its own request") {
  auto engine = make_fake_engine({});
  engine->start();
  for (int i = 0; i < 20; ++i) REQUIRE(engine->submit(request_of(10, 20), nullptr).ok());
  check_all_free(*engine);
  CHECK(engine->stats().generation_tokens == 400);
}

TEST_CASE("an idle engine uses no CPU") {
  auto engine = make_fake_engine({});
  engine->start();
  const auto reader = Reader::submit(*engine, request_of(10, 20));
  reader->read_to_end();
  std::this_thread::sleep_for(20ms);
  const double before = process_cpu_ms();
  std::this_thread::sleep_for(300ms);
  CHECK(process_cpu_ms() - before < 3);
}
