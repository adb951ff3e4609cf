// SPDX-License-Identifier: Apache-2.0
// The end of a process whose drain hangs, seen from another process.
#include "server/end_limit.h"

#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <catch2/catch.hpp>
#include <string>

#include "server/logging.h"

using namespace kivi;

namespace {

struct Ended {
  int code = -1;
  std::string log;
};

// A child whose drain takes as long as it likes, and writes its log into a pipe.
Ended drain_in_child(std::chrono::milliseconds limit, std::chrono::milliseconds drain) {
  std::array<int, 2> ends{};
  REQUIRE(pipe(ends.data()) == 0);
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    const ServerConfig config;
    if (!setup_logging(config).ok()) _exit(3);
    AsyncLog log(config);
    {
      const EndLimit end(limit, [&] { log.flush(AsyncLog::kFlushTime); });
      std::this_thread::sleep_for(drain);
    }
    _exit(0);
  }
  close(ends[1]);
  Ended ended;
  std::array<char, 4096> part;
  for (ssize_t n; (n = read(ends[0], part.data(), part.size())) > 0;)
    ended.log.append(part.data(), size_t(n));
  close(ends[0]);
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  if (WIFEXITED(status)) ended.code = WEXITSTATUS(status);
  return ended;
}

}  // namespace

TEST_CASE("a drain that hangs ends with 1, and its last log line is written") {
  for (int i = 0; i < 5; ++i) {
    const Ended ended = drain_in_child(std::chrono::milliseconds(1), std::chrono::seconds(20));
    CHECK(ended.code == 1);
    CHECK(ended.log.find("the drain is not done after 0.001 s: ending at once") !=
          std::string::npos);
  }
}

TEST_CASE("a drain within its limit ends by itself") {
  const Ended ended = drain_in_child(std::chrono::seconds(20), std::chrono::milliseconds(1));
  CHECK(ended.code == 0);
  CHECK(ended.log.empty());
}
