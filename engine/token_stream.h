// SPDX-License-Identifier: Apache-2.0
// TokenStream carries a running request's tokens to its reader. The engine thread writes, and one
// reader drains it on any thread. No thread waits: the writer calls `notify`, which must only post
// to the reader's executor.
#pragma once

#include <atomic>
#include <functional>
#include <mutex>
#include <optional>
#include <vector>

#include "engine/request.h"

namespace kivi {

class TokenStream {
 public:
  // `notify` is called without any lock when the first event after a drain becomes ready, so at
  // most once for each drain. It runs on the thread that pushes: the engine thread, or the thread
  // that destroys the engine. A reader that drains without being told may see the end before
  // `notify` is called for it. So what `notify` captures must live as long as the stream: capture a
  // shared or weak pointer. `notify` may be empty for a reader that polls.
  explicit TokenStream(std::function<void()> notify) : notify_(std::move(notify)) {}

  // Appends an event. No event may follow one with `finish`. Engine thread.
  void push(TokenEvent event);

  // Appends all ready events to `out`. Returns true if the stream has ended, that is, if the last
  // event has been handed out now or before. Reader.
  bool drain(std::vector<TokenEvent>& out);

  // Asks the engine to end the request at its next step, with finish `reason` (stop: a stop string
  // matched; abort: the client is gone). Any thread, any number of times. The first call counts.
  void cancel(FinishReason reason = FinishReason::abort);
  // Returns the reason if the request was cancelled. Engine thread.
  std::optional<FinishReason> cancelled() const;

 private:
  std::function<void()> notify_;
  std::atomic<int> cancelled_{0};  // 0, or 1 + FinishReason
  std::mutex mutex_;               // guards the three below
  std::vector<TokenEvent> ready_;
  bool notified_ = false;
  bool ended_ = false;
};

}  // namespace kivi
