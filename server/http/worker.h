// run_by_size: keeps long work away from the io threads.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "server/http/http_connection.h"

namespace kivi {

// Runs `work` for the connection's request: here, or on the worker thread where the body is so long
// that parsing and tokenizing it would hold up the other connections of this io thread (at about
// 5 MB/s, this many bytes take some 10 ms). Resumes on the io thread. `work` may touch the request
// and what any thread may touch.
template <class Work>
boost::asio::awaitable<std::invoke_result_t<Work>> run_by_size(HttpConnection& connection,
                                                               Work work) {
  constexpr size_t kLongBody = 48 << 10;
  if (connection.request().body.size() < kLongBody) co_return work();
  using Value = std::invoke_result_t<Work>;
  co_return co_await boost::asio::co_spawn(
      connection.shared().worker(),
      [&work]() -> boost::asio::awaitable<Value> { co_return work(); }, boost::asio::use_awaitable);
}

}  // namespace kivi
