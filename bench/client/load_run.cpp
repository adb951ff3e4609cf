// SPDX-License-Identifier: Apache-2.0
#include "bench/client/load_run.h"

#include <sys/resource.h>

#include <algorithm>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

namespace kivi::load {
namespace asio = boost::asio;

namespace {

constexpr auto kProbeInterval = std::chrono::milliseconds(10);
constexpr auto kProgressInterval = std::chrono::milliseconds(100);

double cpu_seconds(int who) {
  rusage usage{};
  getrusage(who, &usage);
  const auto seconds = [](const timeval& t) { return double(t.tv_sec) + double(t.tv_usec) * 1e-6; };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// What the threads share.
struct Shared {
  const RunPlan& plan;
  RunResult& result;
  RunState state;
  std::atomic<size_t> next{0};  // the first request that no thread has taken
};

// One thread with its io_context: takes requests in order, each when it has a place for it.
class Worker {
 public:
  // `places`: requests in flight at most; 0: no limit.
  Worker(Shared& shared, const ClientFactory& make_client, int places)
      : shared_(shared), limited_(places > 0), client_(make_client(io_)) {
    free_since_.assign(size_t(places), 0.0);
  }

  void run() {
    asio::co_spawn(io_.get_executor(), dispatch(), asio::detached);
    asio::co_spawn(io_.get_executor(), probe(), asio::detached);
    io_.run();
    cpu_seconds_ = cpu_seconds(RUSAGE_THREAD);
  }

  double cpu() const { return cpu_seconds_; }
  bool sees_all_threads() const { return !client_->has_own_threads(); }
  const std::vector<float>& loop_delays() const { return loop_delays_; }

 private:
  Task<> dispatch() {
    std::optional<size_t> taken;
    try {
      co_await take_requests(taken);
    } catch (const std::exception& e) {  // out of memory, or a library's surprise
      fail_rest(taken, e.what());
    }
    dispatched_ = true;
    stop_if_done();
  }

  // `taken`: the request that is being made, while it is not in flight.
  Task<> take_requests(std::optional<size_t>& taken) {
    const RunPlan& plan = shared_.plan;
    while (shared_.next.load() < plan.requests.size()) {
      while (limited_ && free_since_.empty()) co_await place_freed_.async_wait(kTuple);
      const size_t index = shared_.next.fetch_add(1);
      if (index >= plan.requests.size()) break;
      taken = index;
      ++in_flight_;
      double free_since = 0;
      if (limited_) {
        free_since = free_since_.front();
        free_since_.pop_front();
      }
      RequestRecord& record = shared_.result.records[index];
      record.due = plan.due.empty() ? free_since : plan.due[index];
      std::string prepared = client_->prepare(plan.requests[index]);
      co_await wait_until(record.due);
      record.started = shared_.state.now();
      record.late = record.started - std::max(record.due, free_since);
      asio::co_spawn(io_.get_executor(), serve(index, std::move(prepared)), asio::detached);
      taken.reset();
    }
  }

  // This thread can make no more requests: the one it had and those that nobody has taken fail.
  void fail_rest(std::optional<size_t> taken, const std::string& why) {
    if (taken) --in_flight_;
    const size_t count = shared_.plan.requests.size();
    for (size_t i = taken ? *taken : shared_.next.fetch_add(1); i < count;
         i = shared_.next.fetch_add(1)) {
      note_failed(shared_.result.records[i], "client", why, shared_.state.now());
      shared_.state.started.fetch_add(1);
      shared_.state.ended.fetch_add(1);
      shared_.state.failed.fetch_add(1);
    }
  }

  Task<> wait_until(double seconds) {
    if (seconds <= shared_.state.now()) co_return;
    Timer timer(io_, shared_.state.begin + std::chrono::duration_cast<RunState::Clock::duration>(
                                               std::chrono::duration<double>(seconds)));
    co_await timer.async_wait(kTuple);
  }

  Task<> serve(size_t index, std::string prepared) {
    RequestRecord& record = shared_.result.records[index];
    const LoadRequest& request = shared_.plan.requests[index];
    record.prompt_tokens = request.prompt_tokens;
    shared_.state.started.fetch_add(1);
    try {
      co_await client_->send(request, std::move(prepared), record, shared_.state);
    } catch (const std::exception& e) {  // out of memory, or a library's surprise
      note_failed(record, "client", e.what(), shared_.state.now());
    }
    shared_.state.ended.fetch_add(1);
    if (record.outcome == Outcome::failed) shared_.state.failed.fetch_add(1);
    --in_flight_;
    if (limited_) {
      free_since_.push_back(shared_.state.now());
      place_freed_.cancel();
    }
    stop_if_done();
  }

  // How late the loop is: what an event may have waited for its time stamp.
  Task<> probe() {
    auto due = RunState::Clock::now();
    while (!done()) {
      due += kProbeInterval;
      probe_timer_.expires_at(due);
      co_await probe_timer_.async_wait(kTuple);
      if (done()) break;
      const auto now = RunState::Clock::now();
      loop_delays_.push_back(std::chrono::duration<float>(now - due).count());
      due = std::max(due, now - kProbeInterval);  // one late beat is one late beat
    }
  }

  bool done() const { return dispatched_ && in_flight_ == 0; }
  void stop_if_done() {
    if (done()) probe_timer_.cancel();
  }

  Shared& shared_;
  asio::io_context io_{1};
  const bool limited_;
  std::deque<double> free_since_;  // a time for each free place, the longest free first
  Timer place_freed_{io_, Timer::time_point::max()};
  Timer probe_timer_{io_};
  int in_flight_ = 0;
  bool dispatched_ = false;
  std::vector<float> loop_delays_;
  double cpu_seconds_ = 0;
  std::unique_ptr<LoadClient> client_;  // its connections end before io_ does
};

std::vector<std::unique_ptr<Worker>> make_workers(Shared& shared,
                                                  const ClientFactory& make_client) {
  const int places = shared.plan.concurrency;
  const int count = places > 0 ? std::min(shared.plan.threads, places) : shared.plan.threads;
  std::vector<std::unique_ptr<Worker>> workers;
  for (int i = 0; i < count; ++i)
    workers.push_back(std::make_unique<Worker>(shared, make_client,
                                               places / count + (i < places % count ? 1 : 0)));
  return workers;
}

}  // namespace

RunResult run_load(const RunPlan& plan, const ClientFactory& make_client,
                   const std::function<void(const RunState&)>& progress) {
  KIVI_VERIFY(plan.concurrency > 0 || !plan.due.empty());
  KIVI_VERIFY(plan.due.empty() || plan.due.size() == plan.requests.size());
  RunResult result;
  result.records.resize(plan.requests.size());
  Shared shared{plan, result};
  const auto workers = make_workers(shared, make_client);
  const double cpu_before = cpu_seconds(RUSAGE_SELF);
  std::mutex mutex;
  std::condition_variable ended;
  size_t running = workers.size();  // guarded by mutex
  shared.state.begin = RunState::Clock::now();
  {
    std::vector<std::jthread> threads;
    for (const auto& worker : workers)
      threads.emplace_back([&, w = worker.get()] {
        w->run();
        const std::lock_guard lock(mutex);
        --running;
        ended.notify_one();
      });
    std::unique_lock lock(mutex);
    while (!ended.wait_for(lock, kProgressInterval, [&] { return running == 0; })) {
      lock.unlock();
      progress(shared.state);
      lock.lock();
    }
  }
  progress(shared.state);
  for (const RequestRecord& record : result.records)
    result.seconds = std::max(result.seconds, record.ended);
  GeneratorLoad& generator = result.generator;
  generator.cpu_seconds = cpu_seconds(RUSAGE_SELF) - cpu_before;
  generator.threads = int(workers.size());
  generator.cores = std::max(1, int(std::thread::hardware_concurrency()));
  for (const auto& worker : workers) {
    if (worker->sees_all_threads() && result.seconds > 0)
      generator.busiest_thread_share =
          std::max(generator.busiest_thread_share.value_or(0), worker->cpu() / result.seconds);
    generator.loop_delays.insert(generator.loop_delays.end(), worker->loop_delays().begin(),
                                 worker->loop_delays().end());
  }
  return result;
}

}  // namespace kivi::load
