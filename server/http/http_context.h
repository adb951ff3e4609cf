// SPDX-License-Identifier: Apache-2.0
// HttpContext is what all HTTP connections and handlers share.
#pragma once

#include <algorithm>
#include <atomic>
#include <boost/asio/thread_pool.hpp>
#include <map>
#include <mutex>
#include <string>

#include "server/long_work.h"
#include "server/server_state.h"

namespace kivi {

// How many connections each client has open. A client is an address as tenant_of_address() counts
// it: an IPv4 address, or a /64 of IPv6. Any thread.
class ClientCounts {
 public:
  // Connections of one client beyond `each_max` do not count for other clients.
  explicit ClientCounts(int each_max) : each_max_(each_max) {}

  void add(const std::string& client) {
    const std::lock_guard lock(mutex_);
    if (++counts_[client] <= each_max_) ++within_;
  }
  void remove(const std::string& client) {
    const std::lock_guard lock(mutex_);
    const auto it = counts_.find(client);
    if (--it->second < each_max_) --within_;
    if (it->second == 0) counts_.erase(it);
  }
  int each_max() const { return each_max_; }
  // Connections of all clients, of each at most each_max().
  int within() const {
    const std::lock_guard lock(mutex_);
    return within_;
  }
  int of(const std::string& client) const {
    const std::lock_guard lock(mutex_);
    const auto it = counts_.find(client);
    return it == counts_.end() ? 0 : it->second;
  }

 private:
  const int each_max_;
  mutable std::mutex mutex_;  // guards the two below
  std::map<std::string, int> counts_;
  int within_ = 0;
};

// Any thread.
struct HttpContext {
  explicit HttpContext(ServerState& shared)
      : state(shared),
        is_local(is_loopback(shared.config().host)),
        worker(size_t(long_work_threads(shared.config()))),
        clients((shared.config().max_connections + 1) / 2) {}

  ServerState& state;
  // Whether the listening address is reached from this machine only.
  const bool is_local;
  // For work that would keep an io thread from its other connections.
  boost::asio::thread_pool worker;

  // One client has at most half of the connections, so that it cannot keep all others out.
  ClientCounts clients;
  std::atomic<int> connections{0};  // open ones
  std::atomic<int> exchanges{0};    // requests whose header is in and whose reply is not out
};

}  // namespace kivi
