// SPDX-License-Identifier: Apache-2.0
// run_by_size: keeps long work away from the io threads.
#pragma once

#include <malloc.h>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <memory>
#include <string_view>

#include "server/http/http_connection.h"

namespace kivi {

// May the request hold a grammar that must be compiled? That takes up to some 50 ms.
inline bool may_compile(std::string_view body) {
  for (const std::string_view name :
       {"\"response_format\"", "\"structured_outputs\"", "\"guided_", "\"tools\""})
    if (body.find(name) != std::string_view::npos) return true;
  return false;
}

// Runs `work` for the connection's request: here, or on the worker thread where it has a grammar to
// compile, or where the body is so long that parsing and tokenizing it would hold up the other
// connections of this io thread (at about 5 MB/s, this many bytes take some 10 ms). Resumes on the
// io thread. `work` may touch the request and what any thread may touch. Meanwhile the socket is
// watched: connection.stop_token() tells `work` that nobody waits for it.
template <class Work>
boost::asio::awaitable<std::invoke_result_t<Work>> run_by_size(HttpConnection& connection,
                                                               Work work) {
  constexpr size_t kLongBody = 48 << 10;
  const size_t bytes = connection.request().body.size();
  if (bytes < kLongBody && !may_compile(connection.request().body)) co_return work();
  using Value = std::invoke_result_t<Work>;
  connection.begin_long_work();
  co_return co_await boost::asio::co_spawn(
      connection.shared().worker,
      [&work, bytes]() -> boost::asio::awaitable<Value> {
        // The memory of a large request would stay with this thread's arena.
        constexpr size_t kLargeBody = 256 << 10;
        const std::shared_ptr<void> trim(nullptr, [bytes](void*) {
          if (bytes >= kLargeBody) malloc_trim(0);
        });
        co_return work();
      },
      boost::asio::use_awaitable);
}

}  // namespace kivi
