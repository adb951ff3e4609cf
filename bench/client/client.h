// SPDX-License-Identifier: Apache-2.0
// LoadClient: sends one request and records what comes back. One a thread of the generator; all
// calls come on that thread.
#pragma once

#include <atomic>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/basic_waitable_timer.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "bench/client/options.h"
#include "bench/client/record.h"
#include "bench/client/workload.h"

namespace kivi::load {

// Coroutines, their timers and what they wait with, on one io_context; the executor's type is
// spelled out because a token's cost counts.
using Executor = boost::asio::io_context::executor_type;
template <class T = void>
using Task = boost::asio::awaitable<T, Executor>;
using Timer = boost::asio::basic_waitable_timer<
    std::chrono::steady_clock, boost::asio::wait_traits<std::chrono::steady_clock>, Executor>;
inline constexpr boost::asio::as_tuple_t<boost::asio::use_awaitable_t<Executor>> kTuple{};

// The clock of a run, and counts that a progress bar may read at any time.
struct RunState {
  using Clock = std::chrono::steady_clock;
  Clock::time_point begin = Clock::now();
  std::atomic<int64_t> started{0}, ended{0}, failed{0}, tokens{0};

  double now() const { return std::chrono::duration<double>(Clock::now() - begin).count(); }
};

class LoadClient {
 public:
  virtual ~LoadClient() = default;

  // The bytes of a request, made before it is due so that making them delays nothing.
  virtual std::string prepare(const LoadRequest& request) const = 0;

  // The work is also done on threads that are not the caller's.
  virtual bool has_own_threads() const { return false; }

  // Fills `record` but for due, started and late. Never throws for what the server does.
  virtual Task<> send(const LoadRequest& request, std::string prepared, RequestRecord& record,
                      RunState& run) = 0;
};

using ClientFactory = std::function<std::unique_ptr<LoadClient>(boost::asio::io_context&)>;

}  // namespace kivi::load
