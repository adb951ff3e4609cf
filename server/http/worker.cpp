// SPDX-License-Identifier: Apache-2.0
#include "server/http/worker.h"

#include <malloc.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <memory>

namespace kivi {
namespace asio = boost::asio;

asio::awaitable<void> run_on_worker(HttpConnection& connection, std::function<void()> work) {
  const size_t bytes = connection.request().body.size();
  connection.begin_long_work();
  co_await asio::co_spawn(
      connection.shared().worker,
      [&work, bytes]() -> asio::awaitable<void> {
        // The memory of a large request would stay with this thread's arena.
        constexpr size_t kLargeBody = 256 << 10;
        const std::shared_ptr<void> trim(nullptr, [bytes](void*) {
          if (bytes >= kLargeBody) malloc_trim(0);
        });
        work();
        co_return;
      },
      asio::use_awaitable);
}

}  // namespace kivi
