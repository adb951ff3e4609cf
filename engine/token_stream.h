// TokenStream: the one object through which a running request talks to its reader. The engine
// thread writes, one reader drains; each side may be on any thread. No thread waits: the writer
// calls `notify`, which must only post to the reader's executor.
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
  // `notify` is called outside of any lock, when the first event becomes ready after the stream had
  // been drained: at most once a drain. It runs on the thread that pushes: the engine's, or the one
  // that destroys the engine. A reader that drains unasked may see the end before `notify` is
  // called for it: what `notify` captures must live as long as the stream (capture a shared or weak
  // pointer). May be empty, for a reader that polls.
  explicit TokenStream(std::function<void()> notify) : notify_(std::move(notify)) {}

  // Engine thread. After an event with `finish`, nothing may follow.
  void push(TokenEvent event);

  // Reader. Appends all ready events to `out`; returns true if the stream has ended (the last event
  // has been handed out, now or before).
  bool drain(std::vector<TokenEvent>& out);

  // Any thread, any number of times. The engine ends the request at its next step with finish
  // `reason` (stop: a stop string matched; abort: the client is gone). The first call counts.
  void cancel(FinishReason reason = FinishReason::abort);
  // Engine thread.
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
