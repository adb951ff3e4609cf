// SPDX-License-Identifier: Apache-2.0
#include "engine/grammar/mask_maker.h"

#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <new>
#include <utility>

#include "engine/grammar/expression.h"
#include "engine/grammar/work_limit.h"

namespace kivi::grammar {
namespace {

using Clock = std::chrono::steady_clock;

// Of this thread alone: on Linux, a thread has a nice value of its own.
void lower_priority() { setpriority(PRIO_PROCESS, id_t(gettid()), 19); }

// Bytes of the mask; 0 if it cannot be made. Then the text that comes to this state is told why.
size_t make_mask(const CompiledGrammar& grammar, int32_t state) {
  const WorkLimit limit;
  try {
    return grammar.mask(state).bytes();
  } catch (const Failure&) {
    return 0;
  } catch (const std::bad_alloc&) {
    return 0;
  }
}

}  // namespace

MaskMaker::~MaskMaker() {
  for (std::jthread& thread : threads_) thread.request_stop();
}

void MaskMaker::add(const std::shared_ptr<const CompiledGrammar>& grammar) {
  if (threads_max_ == 0) return;
  const std::lock_guard lock(mutex_);
  auto job = std::make_shared<Job>();
  job->grammar = grammar;
  jobs_.push_back(std::move(job));
  while (int(threads_.size()) < threads_max_)
    threads_.emplace_back([this](const std::stop_token& stop) { run(stop); });
  added_.notify_all();
}

void MaskMaker::run(const std::stop_token& stop) {
  lower_priority();
  std::unique_lock lock(mutex_);
  while (added_.wait(lock, stop, [&] { return !jobs_.empty(); }) && !stop.stop_requested()) {
    const std::shared_ptr<Job> job = jobs_.front();
    std::shared_ptr<const CompiledGrammar> grammar = job->grammar.lock();
    if (grammar == nullptr || job->next == grammar->order().size() || job->bytes > kBytesMax ||
        job->seconds > kSecondsMax || grammar->vocabulary().grammar_bytes() > all_bytes_max_) {
      jobs_.pop_front();
      continue;
    }
    const int32_t state = grammar->order()[job->next++];
    lock.unlock();
    const Clock::time_point begin = Clock::now();
    const size_t bytes = make_mask(*grammar, state);
    grammar.reset();  // may be the last owner, and frees many masks
    const std::chrono::duration<double> seconds = Clock::now() - begin;
    lock.lock();
    job->bytes += bytes;
    job->seconds += seconds.count();
  }
}

}  // namespace kivi::grammar
