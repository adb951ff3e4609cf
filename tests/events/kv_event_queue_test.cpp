// SPDX-License-Identifier: Apache-2.0
// KV events between the engine thread and the sockets: a full queue, and the bytes of a batch.
#include "server/kv_event_queue.h"

#include <poll.h>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "server/kv_event_batch.h"
#include "server/kv_event_publisher.h"
#include "tests/engine/prefix_walk.h"

using namespace kivi;
using namespace kivi::testing;
using nlohmann::json;

namespace {

void follow(PrefixMirror& mirror, const std::vector<KvEvent>& events) {
  for (const KvEvent& event : events) {
    switch (event.kind) {
      case KvEvent::Kind::stored:
        mirror.stored({event.id, event.parent, event.tokens, event.unit, event.medium});
        break;
      case KvEvent::Kind::removed:
        mirror.removed(event.id, event.token_count, event.unit, event.medium);
        break;
      case KvEvent::Kind::cleared:
        mirror.cleared();
        break;
      case KvEvent::Kind::lost:
        break;
    }
  }
}

constexpr PrefixMedium kHost = PrefixMedium::host;

bool readable(const KvEventQueue& queue) {
  pollfd poll_item{queue.descriptor(), POLLIN, 0};
  return poll(&poll_item, 1, 0) == 1;
}

KvEvent stored(uint64_t id, uint64_t parent, std::vector<int32_t> tokens, int unit) {
  const int count = int(tokens.size());
  return {KvEvent::Kind::stored, id, parent, std::move(tokens), count, unit, PrefixMedium::device};
}

}  // namespace

TEST_CASE("a queue that was full for a while leaves its reader exact, and counts what it dropped") {
  PrefixWalk walk({{}, {1, 1, 64}}, 60, 3);
  KvEventQueue queue(70);  // more than the cache has blocks
  walk.cache().prefixes().observe(&queue);
  PrefixMirror mirror;
  int losses = 0;
  for (int round = 0; round < 50; ++round) {
    for (int i = 0; i < 250; ++i) walk.step();
    std::vector<KvEvent> events = queue.take();
    CHECK(events.size() <= 70);
    follow(mirror, events);
    // The reader is up to date now; from here on it takes every operation's events.
    for (int i = 0; i < 30; ++i) {
      walk.step();
      events = queue.take();
      for (const KvEvent& event : events) losses += event.kind == KvEvent::Kind::lost ? 1 : 0;
      follow(mirror, events);
    }
    REQUIRE(mirror.paths() == kept_paths(walk.cache().prefixes()));
  }
  CHECK(losses > 5);
  CHECK(queue.dropped() > 100);
}

TEST_CASE("the queue's descriptor is readable while events wait, and after a wake") {
  KvEventQueue queue(3);
  CHECK_FALSE(readable(queue));
  queue.cleared();
  queue.cleared();
  CHECK(readable(queue));
  CHECK(queue.take().size() == 2);
  CHECK_FALSE(readable(queue));
  CHECK(queue.take().empty());
  queue.wake();
  CHECK(readable(queue));
}

TEST_CASE("a batch is vLLM's array of tagged arrays") {
  const BlockHashes hashes(12345);
  const std::vector<KvEvent> events = {stored(1, 0, {1, 2, 3, 4, 5, 6}, 2),
                                       stored(2, 1, {7, 8}, 2),
                                       {KvEvent::Kind::stored, 9, 0, {7, 8}, 2, 2, kHost},
                                       {KvEvent::Kind::removed, 2, 0, {}, 2, 2},
                                       {KvEvent::Kind::removed, 1, 0, {}, 6, 2},
                                       {KvEvent::Kind::removed, 9, 0, {}, 2, 2, kHost},
                                       {KvEvent::Kind::cleared, 0, 0, {}, 0, 0}};
  const json batch = json::from_msgpack(encode_kv_batch(1.5, events, hashes));
  const json first = {hashes.of(1, 2), hashes.of(1, 1), hashes.of(1, 0)};
  const json second = {hashes.of(2, 0)};
  const json gone = {hashes.of(2, 0), hashes.of(1, 2), hashes.of(1, 1), hashes.of(1, 0)};
  CHECK(batch == json::array({1.5,
                              json::array({{"BlockStored",
                                            first,
                                            nullptr,
                                            {1, 2, 3, 4, 5, 6},
                                            2,
                                            nullptr,
                                            "GPU",
                                            nullptr,
                                            nullptr},
                                           {"BlockStored",
                                            second,
                                            hashes.of(1, 0),
                                            {7, 8},
                                            2,
                                            nullptr,
                                            "GPU",
                                            nullptr,
                                            nullptr},
                                           {"BlockStored",
                                            {hashes.of(9, 0)},
                                            nullptr,
                                            {7, 8},
                                            2,
                                            nullptr,
                                            "CPU",
                                            nullptr,
                                            nullptr},
                                           {"BlockRemoved", gone, "GPU"},
                                           {"BlockRemoved", {hashes.of(9, 0)}, "CPU"},
                                           {"AllBlocksCleared"}}),
                              nullptr}));
}

TEST_CASE("no two units of blocks share a hash, and no two processes") {
  std::set<uint64_t> seen;
  for (const uint64_t secret : {1u, 99u}) {
    const BlockHashes hashes(secret * 0x9e3779b97f4a7c15u);
    for (uint64_t block = 1; block < 200; ++block)
      for (int unit = 0; unit < 20; ++unit) CHECK(seen.insert(hashes.of(block, unit)).second);
  }
}

TEST_CASE("an endpoint that cannot be opened is refused by its flag and value") {
  for (const char* endpoint :
       {"5557", "http://x:1", "tcp://*:99999999", "tcp://no.such.interface"}) {
    const auto opened = KvEventPublisher::open(endpoint, "");
    REQUIRE_FALSE(opened.ok());
    CHECK(opened.error().field == "kv-events-endpoint");
    CHECK(opened.error().message.find(endpoint) != std::string::npos);
  }
}
