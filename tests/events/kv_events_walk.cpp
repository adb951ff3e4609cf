// SPDX-License-Identifier: Apache-2.0
// Publishes the events of a random walk through a prefix cache, for tests/events/kv_events_test.py.
//
//   kv_events_walk ENDPOINT REPLAY_ENDPOINT TOPIC SEED OPERATIONS FORMAT
//
// FORMAT is fp16, kivi or sinks, or one of these with +host, for a cache with pages on the host.
// The walk begins after one line of standard input. Then the program prints one JSON object (what
// the cache keeps on the device and on the host, as the tokens up to the end of each block), waits
// for another line, and ends.
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "server/kv_event_publisher.h"
#include "tests/engine/prefix_walk.h"

using namespace kivi;
using namespace kivi::testing;

namespace {

constexpr int kPages = 200;

KvFormat format_of(std::string name) {
  name = name.substr(0, name.find('+'));
  if (name == "kivi") return {KvKind::kivi, 2, 2, 32, 128};
  if (name == "sinks") return {KvKind::kivi, 2, 2, 32, 128, /*sinks=*/32, 8};
  return {};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 7) return 2;
  const std::vector<std::string> args(argv + 1, argv + argc);
  auto publisher = KvEventPublisher::open(args[0], args[1]);
  if (!publisher.ok()) {
    std::cerr << publisher.error().message << "\n";
    return 1;
  }
  const int host_pages = args[5].ends_with("+host") ? kPages : 0;
  PrefixWalk walk({format_of(args[5]), {1, 1, 64}}, kPages, std::stoull(args[3]), host_pages);
  walk.cache().prefixes().observe(&(*publisher)->observer());
  (*publisher)->start(args[2], size_t(kPages + host_pages));
  std::cout << "listening" << std::endl;
  std::string line;
  std::getline(std::cin, line);
  for (int i = 0; i < std::stoi(args[4]); ++i) walk.step();
  nlohmann::json kept = nlohmann::json::array();
  for (const TokenPath& path : kept_paths(walk.cache().prefixes())) {
    KIVI_VERIFY(walk.matched(path) == int(path.size()));  // a request would find it
    kept.push_back(path);
  }
  std::cout << nlohmann::json{{"kept", kept}, {"on_host", walk.on_host()}} << std::endl;
  std::getline(std::cin, line);
  walk.cache().prefixes().observe(nullptr);
  const KvEventCounts counts = (*publisher)->counts();
  std::cout << nlohmann::json{{"batches", counts.batches},
                              {"events", counts.events},
                              {"dropped", counts.dropped}}
            << std::endl;
}
