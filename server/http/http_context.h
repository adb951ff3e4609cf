// SPDX-License-Identifier: Apache-2.0
// HttpContext is what all HTTP connections and handlers share.
#pragma once

#include <algorithm>
#include <atomic>
#include <boost/asio/thread_pool.hpp>

#include "server/server_state.h"

namespace kivi {

// Any thread.
struct HttpContext {
  explicit HttpContext(ServerState& shared)
      : state(shared),
        is_local(is_loopback(shared.config().host)),
        worker(size_t(std::max(kMinWorkers, shared.config().io_threads))) {}

  ServerState& state;
  // Whether the listening address is reached from this machine only.
  const bool is_local;
  // For work that would keep an io thread from its other connections (parsing and tokenizing long
  // prompts). It has more than one thread, so that one long body does not hold up all others.
  boost::asio::thread_pool worker;

  std::atomic<size_t> body_bytes{0};  // of request bodies that are being read or used (BodyShare)
  std::atomic<int> connections{0};    // open ones
  std::atomic<int> exchanges{0};      // requests whose header is in and whose reply is not out

 private:
  static constexpr int kMinWorkers = 2;
};

// The share of one request in the body bytes of all connections (max_body_bytes_in_flight). The
// destructor gives it back. One thread at a time may use it.
class BodyShare {
 public:
  explicit BodyShare(HttpContext& context) : context_(context) {}
  ~BodyShare() { release(); }
  BodyShare(const BodyShare&) = delete;
  BodyShare& operator=(const BodyShare&) = delete;

  // Grows the share to `bytes`. Returns false and takes nothing if that exceeds the limit.
  bool grow_to(size_t bytes) {
    if (bytes <= bytes_) return true;
    const size_t more = bytes - bytes_;
    if (context_.body_bytes.fetch_add(more) + more >
        context_.state.config().max_body_bytes_in_flight) {
      context_.body_bytes -= more;
      return false;
    }
    bytes_ = bytes;
    return true;
  }
  void release() {
    context_.body_bytes -= bytes_;
    bytes_ = 0;
  }

 private:
  HttpContext& context_;
  size_t bytes_ = 0;
};

}  // namespace kivi
