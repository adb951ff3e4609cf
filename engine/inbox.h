// SPDX-License-Identifier: Apache-2.0
// Inbox holds new requests until the engine thread takes them. It is also the only way by which
// other threads reach requests that run. Many threads write, and the engine thread reads, under one
// mutex.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include "engine/sequence.h"

namespace kivi {

class Inbox {
 public:
  // At most `requests_max` requests with `tokens_max` prompt tokens wait: from put() until
  // leave_queue(). put_all() may exceed `requests_max` when no request waits.
  Inbox(int requests_max, int64_t tokens_max);

  // --- any thread -------------------------------------------------------------------------------
  // Gives the sequence its order and keeps it. Errors: resource_exhausted (a queue limit, which it
  // names), unavailable (closed).
  Status put(std::unique_ptr<Sequence> sequence);
  // Puts all sequences or none. Errors as those of put().
  Status put_all(std::vector<std::unique_ptr<Sequence>> sequences);
  // Returns the error that put_all() of this many requests and prompt tokens would return now.
  Status check_room(int requests, int64_t prompt_tokens) const;
  void close();  // no more is taken
  // Cancels the streams of the request `id` and of its choices ("<id>/..."); false if there is
  // none.
  bool cancel(const std::string& id);
  void cancel_all();
  // Waits until every request that was put has ended. Returns false after `timeout`.
  bool wait_until_empty(std::chrono::milliseconds timeout);
  int size() const;  // put, and not yet taken

  // --- engine thread ----------------------------------------------------------------------------
  // Sleeps until something is in; false where `stop` was requested.
  bool wait(const std::stop_token& stop);
  // Sleeps until something is in, or for `duration`.
  void wait_for(std::chrono::microseconds duration);
  std::vector<std::unique_ptr<Sequence>> take();
  // Requests no longer wait: they were scheduled for the first time, or ended before.
  void leave_queue(int requests, int64_t prompt_tokens);
  // The requests have ended: their last event is in the stream.
  using Key = std::pair<std::string, uint64_t>;  // (request id, order)
  void retire(std::span<const Key> ended);

 private:
  Status check_room_locked(int requests, int64_t prompt_tokens) const;

  const int requests_max_;
  const int64_t tokens_max_;

  mutable std::mutex mutex_;  // guards all below
  std::condition_variable_any arrived_;
  std::condition_variable empty_;
  std::vector<std::unique_ptr<Sequence>> pending_;
  std::map<Key, std::shared_ptr<TokenStream>> live_;  // every request that has not ended
  int queued_requests_ = 0;
  int64_t queued_tokens_ = 0;
  uint64_t next_order_ = 0;
  bool closed_ = false;
};

}  // namespace kivi
