// SPDX-License-Identifier: Apache-2.0
#include "server/end_limit.h"

#include <spdlog/spdlog.h>

#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <utility>

namespace kivi {

EndLimit::EndLimit(std::chrono::milliseconds limit, std::function<void()> last_words)
    : thread_([limit, last_words = std::move(last_words)](const std::stop_token& stop) {
        std::mutex mutex;
        std::condition_variable_any never;
        std::unique_lock lock(mutex);
        never.wait_for(lock, stop, limit, [] { return false; });
        if (stop.stop_requested()) return;
        spdlog::error("the drain is not done after {} s: ending at once",
                      double(limit.count()) / 1000);
        last_words();
        std::_Exit(1);
      }) {}

}  // namespace kivi
