// SPDX-License-Identifier: Apache-2.0
// EndLimit ends the process if a drain takes too long.
#pragma once

#include <chrono>
#include <functional>
#include <thread>

namespace kivi {

// Ends the process with exit code 1 if it still exists after `limit`, whatever its threads wait
// for. `last_words` is called after the log line that says so, because the log has a queue.
class EndLimit {
 public:
  EndLimit(std::chrono::milliseconds limit, std::function<void()> last_words);

 private:
  std::jthread thread_;
};

}  // namespace kivi
