// SPDX-License-Identifier: Apache-2.0
// Limits of connections and the file descriptors that the process may open.
#include "server/descriptor_limit.h"

#include <fcntl.h>
#include <sys/resource.h>

#include <catch2/catch.hpp>

#include "server/process_stats.h"

namespace kivi {
namespace {

// What both limits come to for such a process; {0, 0}: an error, whose field is in `field`.
std::pair<int, int> fitted(ServerConfig config, long descriptors, std::string* field = nullptr) {
  const Status status = fit_connections(config, descriptors);
  if (!status.ok()) {
    if (field != nullptr) *field = status.error().field;
    return {0, 0};
  }
  return {config.max_connections, config.max_grpc_connections};
}

}  // namespace

TEST_CASE("connection limits that fit are not touched") {
  CHECK(fitted({}, 10'000) == std::pair{4096, 1024});
  ServerConfig chosen;
  chosen.max_connections = 500;
  chosen.max_grpc_connections = 100;
  CHECK(fitted(chosen, 1024) == std::pair{500, 100});
}

TEST_CASE("limits that nobody chose are lowered until they fit, for every number of descriptors") {
  for (long descriptors = 400; descriptors < 7000; ++descriptors) {
    const auto [http, grpc] = fitted({}, descriptors);
    INFO(descriptors << " descriptors: " << http << " HTTP, " << grpc << " gRPC");
    REQUIRE(http >= 16);
    REQUIRE(grpc >= 4);
    REQUIRE(http <= 4096);
    REQUIRE(grpc <= 1024);
    REQUIRE(http + 2 * grpc <= descriptors);
    if (descriptors > 6500) REQUIRE(std::pair{http, grpc} == std::pair{4096, 1024});
  }
}

TEST_CASE("a chosen limit stays and the other one yields") {
  ServerConfig config;
  config.max_connections = 600;
  const auto [http, grpc] = fitted(config, 1024);
  CHECK(http == 600);
  CHECK(grpc == (1024 - 320 - 600) / 2);
}

TEST_CASE("chosen limits that do not fit are an error that names its field") {
  std::string field;
  ServerConfig config;
  config.max_connections = 5000;
  CHECK(fitted(config, 1024, &field) == std::pair{0, 0});
  CHECK(field == "max_connections");
  config = {};
  config.max_grpc_connections = 900;
  CHECK(fitted(config, 1024, &field) == std::pair{0, 0});
  CHECK(field == "max_grpc_connections");
  CHECK(fitted({}, 64, &field) == std::pair{0, 0});
}

TEST_CASE("TLS needs two more descriptors for each connection") {
  ServerConfig config;
  config.max_connections = 100;
  config.max_grpc_connections = 50;
  CHECK(fitted(config, 320 + 100 + 100).first == 100);
  config.ssl_certfile = "a.pem";
  CHECK(fitted(config, 320 + 100 + 100) == std::pair{0, 0});
  CHECK(fitted(config, 320 + 300 + 200).first == 100);
}

TEST_CASE("a front end that is off needs no descriptors") {
  ServerConfig config;
  config.max_connections = 100'000;
  config.port = -1;
  CHECK(fitted(config, 1024) == std::pair{100'000, (1024 - 320) / 2});
}

TEST_CASE("the open descriptors of the process are counted") {
  int open = 0;
  for (int fd = 0; fd < 4096; ++fd) open += fcntl(fd, F_GETFD) != -1;
  CHECK(read_process_stats().open_fds == open);
}

TEST_CASE("the soft limit of descriptors is raised to the hard one") {
  rlimit before{};
  REQUIRE(getrlimit(RLIMIT_NOFILE, &before) == 0);
  rlimit low = before;
  low.rlim_cur = std::min<rlim_t>(before.rlim_cur, 200);
  REQUIRE(setrlimit(RLIMIT_NOFILE, &low) == 0);
  const long raised = raise_descriptor_limit();
  CHECK(rlim_t(raised) == std::min<rlim_t>(before.rlim_max, 1 << 20));
  setrlimit(RLIMIT_NOFILE, &before);
}

}  // namespace kivi
