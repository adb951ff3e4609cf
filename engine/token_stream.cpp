// SPDX-License-Identifier: Apache-2.0
#include "engine/token_stream.h"

#include <utility>

#include "base/verify.h"

namespace kivi {

void TokenStream::push(TokenEvent event) {
  bool notify = false;
  {
    const std::lock_guard lock(mutex_);
    KIVI_VERIFY(!ended_);
    ended_ = event.finish.has_value();
    ready_.push_back(std::move(event));
    notify = !std::exchange(notified_, true);
  }
  if (notify && notify_) notify_();
}

bool TokenStream::drain(std::vector<TokenEvent>& out) {
  const std::lock_guard lock(mutex_);
  notified_ = false;
  if (out.empty()) {
    out.swap(ready_);
  } else {
    out.insert(out.end(), std::make_move_iterator(ready_.begin()),
               std::make_move_iterator(ready_.end()));
    ready_.clear();
  }
  return ended_;
}

void TokenStream::cancel(FinishReason reason) {
  int none = 0;  // the first reason stands
  cancelled_.compare_exchange_strong(none, 1 + int(reason));
}

std::optional<FinishReason> TokenStream::cancelled() const {
  const int value = cancelled_.load(std::memory_order_relaxed);
  if (value == 0) return std::nullopt;
  return FinishReason(value - 1);
}

}  // namespace kivi
