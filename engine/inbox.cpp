// SPDX-License-Identifier: Apache-2.0
#include "engine/inbox.h"

#include <fmt/format.h>

#include "base/verify.h"

namespace kivi {

Inbox::Inbox(int requests_max, int64_t tokens_max)
    : requests_max_(requests_max), tokens_max_(tokens_max) {}

Status Inbox::put(std::unique_ptr<Sequence> sequence) {
  const int tokens = sequence->prompt_tokens;
  {
    const std::lock_guard lock(mutex_);
    KIVI_RETURN_IF_ERROR(check_room_locked(1, tokens));
    ++queued_requests_;
    queued_tokens_ += tokens;
    sequence->order = next_order_++;
    live_.emplace(Key{sequence->request.id, sequence->order}, sequence->stream);
    pending_.push_back(std::move(sequence));
  }
  arrived_.notify_one();
  return ok_status();
}

// One request that is larger than the whole queue is taken when nothing waits: it could never be
// taken otherwise. The caller bounds its size (Completion::start).
Status Inbox::check_room_locked(int requests, int64_t prompt_tokens) const {
  if (closed_) return Error{ErrorCode::unavailable, "the server takes no new requests"};
  if (queued_requests_ > 0 && queued_requests_ + requests > requests_max_)
    return Error{ErrorCode::resource_exhausted,
                 fmt::format("{} requests are waiting and {} more would exceed "
                             "max_num_queued_reqs {}",
                             queued_requests_, requests, requests_max_)};
  if (queued_tokens_ + prompt_tokens > tokens_max_)
    return Error{ErrorCode::resource_exhausted,
                 fmt::format("{} prompt tokens are waiting and {} more would exceed "
                             "max_num_queued_tokens {}",
                             queued_tokens_, prompt_tokens, tokens_max_)};
  return ok_status();
}

Status Inbox::check_room(int requests, int64_t prompt_tokens) const {
  const std::lock_guard lock(mutex_);
  return check_room_locked(requests, prompt_tokens);
}

Status Inbox::put_all(std::vector<std::unique_ptr<Sequence>> sequences) {
  int64_t tokens = 0;
  for (const auto& sequence : sequences) tokens += sequence->prompt_tokens;
  {
    const std::lock_guard lock(mutex_);
    KIVI_RETURN_IF_ERROR(check_room_locked(int(sequences.size()), tokens));
    // All memory is allocated before anything is changed: an exception leaves the queue as it was.
    pending_.reserve(pending_.size() + sequences.size());
    std::map<Key, std::shared_ptr<TokenStream>> live;
    for (const auto& sequence : sequences) {
      sequence->order = next_order_++;
      live.emplace(Key{sequence->request.id, sequence->order}, sequence->stream);
    }
    live_.merge(live);
    queued_requests_ += int(sequences.size());
    queued_tokens_ += tokens;
    for (auto& sequence : sequences) pending_.push_back(std::move(sequence));
  }
  arrived_.notify_one();
  return ok_status();
}

void Inbox::close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
}

bool Inbox::cancel(const std::string& id) {
  const std::lock_guard lock(mutex_);
  bool found = false;
  const auto cancel_range = [&](const std::string& begin, const std::string& end) {
    const auto last = live_.lower_bound({end, 0});
    for (auto it = live_.lower_bound({begin, 0}); it != last; ++it) {
      it->second->cancel();
      found = true;
    }
  };
  cancel_range(id, id + '\0');                 // the id itself, maybe several times
  cancel_range(id + '/', id + char('/' + 1));  // its choices
  return found;
}

void Inbox::cancel_all() {
  const std::lock_guard lock(mutex_);
  for (const auto& [unused, stream] : live_) stream->cancel();
}

bool Inbox::wait_until_empty(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  return empty_.wait_for(lock, timeout, [&] { return live_.empty(); });
}

int Inbox::size() const {
  const std::lock_guard lock(mutex_);
  return int(pending_.size());
}

bool Inbox::wait(const std::stop_token& stop) {
  std::unique_lock lock(mutex_);
  return arrived_.wait(lock, stop, [&] { return !pending_.empty(); });
}

void Inbox::wait_for(std::chrono::microseconds duration) {
  std::unique_lock lock(mutex_);
  arrived_.wait_for(lock, duration, [&] { return !pending_.empty(); });
}

std::vector<std::unique_ptr<Sequence>> Inbox::take() {
  const std::lock_guard lock(mutex_);
  return std::exchange(pending_, {});
}

void Inbox::leave_queue(int requests, int64_t prompt_tokens) {
  const std::lock_guard lock(mutex_);
  queued_requests_ -= requests;
  queued_tokens_ -= prompt_tokens;
  KIVI_VERIFY(queued_requests_ >= 0 && queued_tokens_ >= 0);
}

void Inbox::retire(std::span<const Key> ended) {
  if (ended.empty()) return;
  {
    const std::lock_guard lock(mutex_);
    for (const Key& key : ended) {
      const size_t erased = live_.erase(key);
      KIVI_VERIFY(erased == 1);
    }
    if (!live_.empty()) return;
  }
  empty_.notify_all();
}

}  // namespace kivi
