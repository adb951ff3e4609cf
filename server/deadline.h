// SPDX-License-Identifier: Apache-2.0
// Deadline is a time limit that is moved far more often than it is reached. To move it later only
// stores a number: when the timer fires, it checks that number again.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <functional>
#include <memory>
#include <utility>

#include "engine/request.h"

namespace kivi {

// Only the thread of its io context may use it. `expired` is called when the limit is reached, and
// never after the destructor.
class Deadline {
 public:
  Deadline(boost::asio::io_context& context, std::function<void()> expired)
      : state_(std::make_shared<State>(context, std::move(expired))) {}
  ~Deadline() {
    state_->expired = nullptr;
    state_->timer.cancel();
  }
  Deadline(const Deadline&) = delete;
  Deadline& operator=(const Deadline&) = delete;

  void set(Clock::time_point at) {
    state_->at = at;
    if (!state_->armed || at < state_->timer.expiry()) arm(state_);
  }
  void set_in(std::chrono::milliseconds duration) { set(Clock::now() + duration); }
  void clear() { state_->at = Clock::time_point::max(); }

 private:
  // The waiting handler shares ownership, because it may run after the Deadline is gone.
  struct State {
    State(boost::asio::io_context& context, std::function<void()> e)
        : timer(context), expired(std::move(e)) {}
    boost::asio::steady_timer timer;
    std::function<void()> expired;
    Clock::time_point at = Clock::time_point::max();
    bool armed = false;
    unsigned generation = 0;  // of the wait that counts
  };

  static void arm(const std::shared_ptr<State>& state) {
    state->armed = true;
    state->timer.expires_at(state->at);  // cancels the wait before
    state->timer.async_wait([state, generation = ++state->generation](auto error) {
      if (error || generation != state->generation || !state->expired) return;
      state->armed = false;
      if (state->at > Clock::now()) {
        if (state->at != Clock::time_point::max()) arm(state);
        return;
      }
      state->at = Clock::time_point::max();
      state->expired();
    });
  }

  std::shared_ptr<State> state_;
};

}  // namespace kivi
