// SPDX-License-Identifier: Apache-2.0
#include "engine/token_stream.h"

#include <catch2/catch.hpp>
#include <thread>

using namespace kivi;

TEST_CASE("the reader is notified at most once a drain") {
  int notified = 0;
  TokenStream stream([&] { ++notified; });
  std::vector<TokenEvent> out;
  for (int i = 0; i < 5; ++i) stream.push({.id = i});
  CHECK(notified == 1);
  CHECK_FALSE(stream.drain(out));
  CHECK(out.size() == 5);
  CHECK_FALSE(stream.drain(out));
  CHECK(out.size() == 5);
  CHECK(notified == 1);

  stream.push({.id = 5});
  CHECK(notified == 2);
  stream.push({.finish = FinishReason::length});  // the pending drain will see it
  CHECK(notified == 2);
  CHECK(stream.drain(out));
  CHECK(out.size() == 7);
  CHECK(out[5].id == 5);
  CHECK(stream.drain(out));  // ended stays ended
  CHECK(out.size() == 7);
}

TEST_CASE("notify may use the stream: no lock is held") {
  TokenStream* self = nullptr;
  std::vector<TokenEvent> out;
  TokenStream stream([&] { self->drain(out); });
  self = &stream;
  stream.push({.id = 1});
  stream.push({.id = 2});
  CHECK(out.size() == 2);
}

TEST_CASE("a stream without a reader keeps its events") {
  TokenStream stream(nullptr);
  for (int i = 0; i < 1000; ++i) stream.push({.id = i});
  std::vector<TokenEvent> out;
  stream.drain(out);
  CHECK(out.size() == 1000);
}

TEST_CASE("the first reason of a cancellation stands") {
  TokenStream stream(nullptr);
  CHECK_FALSE(stream.cancelled().has_value());
  stream.cancel(FinishReason::stop);
  stream.cancel(FinishReason::abort);
  CHECK(stream.cancelled() == FinishReason::stop);
}

TEST_CASE("every event arrives once and in order at a reader on another thread") {
  constexpr int kEvents = 20000;
  std::atomic<int> posted{0};
  TokenStream stream([&] {
    ++posted;
    posted.notify_one();
  });
  std::thread writer([&] {
    for (int i = 0; i < kEvents; ++i) stream.push({.id = i});
    stream.push({.finish = FinishReason::length});
  });
  std::vector<TokenEvent> out;
  for (int seen = 0;;) {
    posted.wait(seen);
    seen = posted.load();
    if (stream.drain(out)) break;  // a lost notification would hang here
  }
  writer.join();
  REQUIRE(out.size() == kEvents + 1);
  for (int i = 0; i < kEvents; ++i) REQUIRE(out[size_t(i)].id == i);
}
