#include "server/serve.h"

#include <fmt/format.h>
#include <pthread.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>

#include "server/grpc/grpc_server.h"
#include "server/http/http_server.h"
#include "server/load_reporter.h"
#include "server/metrics.h"

namespace kivi {
namespace {

// After the engine has ended, replies that are on their way have this long to reach their clients.
constexpr std::chrono::seconds kFlushTime{5};

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

sigset_t stop_signals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGUSR1);  // ends the waiting thread
  return signals;
}

// Waits for SIGTERM and SIGINT on a thread of its own. The first one calls `first`, the second ends
// the process.
class SignalWatch {
 public:
  explicit SignalWatch(std::function<void(int signal)> first) {
    const sigset_t signals = stop_signals();
    pthread_sigmask(SIG_BLOCK, &signals, &previous_);
    thread_ = std::thread([first = std::move(first), signals] {
      for (int count = 0;;) {
        int signal = 0;
        if (sigwait(&signals, &signal) != 0) continue;
        if (signal == SIGUSR1) return;
        if (++count == 1) {
          first(signal);
          continue;
        }
        spdlog::warn("second signal: ending at once");
        std::_Exit(128 + signal);
      }
    });
  }
  ~SignalWatch() {
    pthread_kill(thread_.native_handle(), SIGUSR1);
    thread_.join();
    pthread_sigmask(SIG_SETMASK, &previous_, nullptr);
  }

 private:
  sigset_t previous_{};
  std::thread thread_;
};

// What the main thread waits for.
struct Events {
  std::mutex mutex;  // guards the rest
  std::condition_variable changed;
  int signal = 0;
  bool load_ended = false;

  void set_signal(int value) {
    const std::lock_guard lock(mutex);
    signal = value;
    changed.notify_all();
  }
  void set_load_ended() {
    const std::lock_guard lock(mutex);
    load_ended = true;
    changed.notify_all();
  }
  // Until a signal came, or loading ended if `or_loaded`; the signal, or 0.
  int wait(bool or_loaded) {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return signal != 0 || (or_loaded && load_ended); });
    return signal;
  }
};

// The two front ends, either of which may be off.
class FrontEnds {
 public:
  FrontEnds(const ServerConfig& config, Metrics& metrics) : config_(config) {
    if (config.port >= 0) http_.emplace(config, metrics);
    if (config.grpc_port >= 0) grpc_.emplace(config, metrics);
    const auto limiter = RateLimiter::make(rate_limits_of(config));
    if (http_) http_->set_rate_limiter(limiter);
    if (grpc_) grpc_->set_rate_limiter(limiter);
  }

  Status start() {
    if (http_) {
      KIVI_RETURN_IF_ERROR(http_->start());
      spdlog::info("HTTP: http://{}:{}", config_.host, http_->port());
    }
    if (grpc_) {
      KIVI_RETURN_IF_ERROR(grpc_->start());
      spdlog::info("gRPC: {}:{}", config_.host, grpc_->port());
    }
    return ok_status();
  }
  void set_model(const ServedModel& model) {
    if (http_) http_->set_model(model);
    if (grpc_) grpc_->set_model(model);
  }
  void begin_drain() {
    if (http_) http_->begin_drain();
    if (grpc_) grpc_->begin_drain();
  }
  // Lets replies go out, then closes everything.
  void stop() {
    const Clock::time_point end = Clock::now() + kFlushTime;
    if (http_ && !http_->wait_idle(kFlushTime))
      spdlog::warn("some HTTP clients did not take their replies in time");
    while (grpc_ && grpc_->running() > 0 && Clock::now() < end)
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    if (http_) http_->stop();
    if (grpc_) grpc_->stop();
  }

 private:
  const ServerConfig& config_;
  std::optional<HttpServer> http_;
  std::optional<GrpcServer> grpc_;
};

void log_start(const LoadedModel& loaded) {
  spdlog::info("memory plan\n{}", loaded.plan.text());
  for (const LoadPhase& phase : loaded.phases) spdlog::info("start-up: {}", describe(phase));
}

// Refuses new work and gives running work its time. Health checks see it at once.
void drain(const ServerConfig& config, Engine& engine, FrontEnds& fronts) {
  const Clock::time_point start = Clock::now();
  fronts.begin_drain();
  if (!engine.drain(std::chrono::seconds(config.shutdown_timeout)))
    spdlog::warn("shutdown_timeout of {} s is over: running requests are aborted",
                 config.shutdown_timeout);
  fronts.stop();
  spdlog::info("drained in {:.2f} s", seconds_since(start));
}

}  // namespace

int serve(const ServerConfig& config, const std::string& model_name, const LoadFunction& load) {
  const Clock::time_point start = Clock::now();
  Events events;
  const SignalWatch signals([&events](int signal) { events.set_signal(signal); });
  Metrics metrics(config.metrics_prefix, model_name);
  FrontEnds fronts(config, metrics);  // outlives the engine, whose notifications it takes
  if (const Status status = fronts.start(); !status.ok()) {
    spdlog::error("{}", status.error().message);
    return 1;
  }

  std::optional<Result<std::unique_ptr<LoadedModel>>> result;
  std::thread loader([&] {
    LoadReporter reporter(isatty(STDERR_FILENO) != 0);
    result.emplace(load([&](const std::string& phase, int64_t done, int64_t total) {
      reporter.progress(phase, done, total);
    }));
    reporter.finish();
    events.set_load_ended();
  });
  if (const int signal = events.wait(/*or_loaded=*/true); signal != 0) {
    // Loading cannot be interrupted, and nothing can be lost.
    spdlog::info("{} while loading: ending", strsignal(signal));
    std::_Exit(0);
  }
  loader.join();
  if (!result->ok()) {
    spdlog::error("{}", result->error().message);
    return 1;
  }
  const std::unique_ptr<LoadedModel> loaded = std::move(*result).value();
  loaded->served.name = model_name;
  log_start(*loaded);
  loaded->engine->on_step([&metrics](int rows, double) { metrics.step(rows); });
  loaded->engine->start();
  metrics.attach(loaded->served);
  fronts.set_model(loaded->served);
  spdlog::info("{} is ready after {:.2f} s", model_name, seconds_since(start));

  const int signal = events.wait(/*or_loaded=*/false);
  spdlog::info("{}: draining", strsignal(signal));
  drain(config, *loaded->engine, fronts);
  metrics.detach();
  return 0;
}

}  // namespace kivi
