// SPDX-License-Identifier: Apache-2.0
// run_by_size: keeps long work away from the io threads.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <functional>
#include <optional>
#include <string_view>
#include <type_traits>
#include <utility>

#include "server/http/http_connection.h"
#include "server/long_work.h"

namespace kivi {

// Returns true if the request may hold a grammar.
inline bool may_compile(std::string_view body) {
  for (const std::string_view name :
       {"\"response_format\"", "\"structured_outputs\"", "\"guided_", "\"tools\"", "\"json_"})
    if (body.find(name) != std::string_view::npos) return true;
  return false;
}

// Runs `work` on a worker thread while the socket is watched. Resumes on the io thread.
boost::asio::awaitable<void> run_on_worker(HttpConnection& connection, std::function<void()> work);

// Runs `work` for the connection's request: here, or on the worker thread where it has a grammar to
// compile, or where the body is long (long_work.h) and would hold up the other connections of this
// io thread. Resumes on the io thread. `work` may touch the request and what any thread may touch.
// Meanwhile the socket is watched: connection.stop_token() tells `work` that nobody waits for it.
template <class Work>
boost::asio::awaitable<std::invoke_result_t<Work>> run_by_size(HttpConnection& connection,
                                                               Work work) {
  const std::string& body = connection.request().body;
  if (body.size() < kLongRequestBytes && !may_compile(body)) co_return work();
  std::optional<std::invoke_result_t<Work>> value;
  co_await run_on_worker(connection, [&work, &value] { value.emplace(work()); });
  co_return std::move(*value);
}

}  // namespace kivi
