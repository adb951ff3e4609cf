// SPDX-License-Identifier: Apache-2.0
#include "server/serve.h"

#include <fmt/format.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <sstream>
#include <thread>
#include <utility>

#include "base/log.h"
#include "server/auth.h"
#include "server/body_budget.h"
#include "server/descriptor_limit.h"
#include "server/end_limit.h"
#include "server/grpc/grpc_server.h"
#include "server/grpc/library_log.h"
#include "server/http/http_server.h"
#include "server/kv_event_publisher.h"
#include "server/load_reporter.h"
#include "server/logging.h"
#include "server/memory_limit.h"
#include "server/memory_trim.h"
#include "server/metrics.h"
#include "server/span_exporter.h"

namespace kivi {
namespace {

// After the engine has ended, replies that are on their way have this long to reach their clients.
constexpr std::chrono::seconds kFlushTime{5};
// A signal that comes so soon after the first is the same one: `timeout`, and wrappers that pass
// signals on, send it to the process and again to its group.
constexpr std::chrono::milliseconds kSameSignal{100};

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

sigset_t stop_signals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGHUP);
  sigaddset(&signals, SIGUSR1);  // ends the waiting thread
  return signals;
}

// Keeps the signals from this thread and from the threads that it starts. Before all of those.
class BlockedSignals {
 public:
  BlockedSignals() {
    const sigset_t signals = stop_signals();
    pthread_sigmask(SIG_BLOCK, &signals, &previous_);
  }
  ~BlockedSignals() { pthread_sigmask(SIG_SETMASK, &previous_, nullptr); }

 private:
  sigset_t previous_{};
};

struct SignalActions {
  std::function<void(int signal)> stop;  // the first SIGTERM or SIGINT
  std::function<void()> last_words;      // before a later one ends the process
  std::function<void()> reload;          // SIGHUP
};

// Waits for the blocked signals on a thread of its own, which calls the actions.
class SignalWatch {
 public:
  explicit SignalWatch(SignalActions actions) {
    thread_ = std::thread([actions = std::move(actions), signals = stop_signals()] {
      for (std::optional<Clock::time_point> first;;) {
        int signal = 0;
        if (sigwait(&signals, &signal) != 0) continue;
        if (signal == SIGUSR1) return;
        if (signal == SIGHUP) {
          actions.reload();
          continue;
        }
        if (!first) {
          first = Clock::now();
          actions.stop(signal);
          continue;
        }
        if (Clock::now() < *first + kSameSignal) continue;
        log_warning("second signal: ending at once");
        actions.last_words();
        std::_Exit(128 + signal);
      }
    });
  }
  ~SignalWatch() {
    pthread_kill(thread_.native_handle(), SIGUSR1);
    thread_.join();
  }

 private:
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
  explicit FrontEnds(ServerState& state) : state_(state), config_(state.config()) {
    if (config_.port >= 0) http_.emplace(state);
    if (config_.grpc_port >= 0) grpc_.emplace(state);
  }

  Status start() {
    // As in a URL: an IPv6 address has brackets there.
    const bool colons = config_.host.find(':') != std::string::npos;
    const std::string host = colons ? "[" + config_.host + "]" : config_.host;
    if (http_) {
      KIVI_RETURN_IF_ERROR(http_->start());
      log_info("HTTP: {}://{}:{}", tls() ? "https" : "http", host, http_->port());
    }
    if (grpc_) {
      KIVI_RETURN_IF_ERROR(grpc_->start());
      log_info("gRPC: {}:{}{}", host, grpc_->port(), tls() ? " (TLS)" : "");
    }
    started_ = true;
    return ok_status();
  }
  ServerState& state() { return state_; }
  // The port that HTTP listens on; -1: none. After start().
  int http_port() const { return http_ ? http_->port() : -1; }
  bool tls() const { return !config_.ssl_certfile.empty(); }
  // For connections that come later. On an error the old certificates stay.
  Status reload_certificates() {
    if (!started_) return ok_status();
    if (http_) KIVI_RETURN_IF_ERROR(http_->reload_certificates());
    return grpc_ ? grpc_->reload_certificates() : ok_status();
  }
  // Lets replies go out, then closes everything.
  void stop() {
    const Clock::time_point end = Clock::now() + kFlushTime;
    if (http_ && !http_->wait_idle(kFlushTime))
      log_warning("some HTTP clients did not take their replies in time");
    while (grpc_ && grpc_->running() > 0 && Clock::now() < end)
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    if (http_) http_->stop();
    if (grpc_) grpc_->stop();
  }

 private:
  ServerState& state_;
  const ServerConfig& config_;
  std::optional<HttpServer> http_;
  std::optional<GrpcServer> grpc_;
  std::atomic<bool> started_{false};
};

std::string default_topic(int port, const std::string& model_name) {
  char host[256] = "localhost";
  gethostname(host, sizeof host - 1);
  return fmt::format("kv@{}:{}@{}", host, port, model_name);
}

// Opens the sockets for KV events if there is an endpoint for them. `out` must outlive scrapes.
Status open_kv_events(const ServerConfig& config, Metrics& metrics,
                      std::unique_ptr<KvEventPublisher>& out) {
  if (config.kv_events_endpoint.empty()) return ok_status();
  KIVI_ASSIGN_OR_RETURN(
      out, KvEventPublisher::open(config.kv_events_endpoint, config.kv_events_replay_endpoint));
  const KvEventPublisher* publisher = out.get();
  metrics.attach_counter("kv_event_batches_total", "Batches of KV events that were published.",
                         [publisher] { return publisher->counts().batches; });
  metrics.attach_counter("kv_events_total", "KV events in these batches.",
                         [publisher] { return publisher->counts().events; });
  metrics.attach_counter("kv_events_dropped_total", "KV events that found the queue full.",
                         [publisher] { return publisher->counts().dropped; });
  return ok_status();
}

void log_start(const LoadedModel& loaded) {
  std::istringstream plan(loaded.plan.text());
  for (std::string line; std::getline(plan, line);) log_info("{}", line);
  for (const LoadPhase& phase : loaded.phases) log_info("start-up: {}", describe(phase));
}

// The store's pages are touched as they are used, so a plan that is too large is felt late: the
// kernel ends the process under load.
void warn_if_too_large(const MemoryPlan& plan, const ServerConfig& config) {
  const int64_t needed =
      plan.weights + plan.workspace + store_bytes(plan) + int64_t(config.max_body_bytes_in_flight);
  const std::optional<int64_t> limit = control_group_memory();
  if (!limit || needed <= *limit) return;
  log_warning(
      "the control group of this process has {} MB of memory, and the memory plan and the bodies "
      "of "
      "requests may take {} MB: the kernel may end the process (--kv-cache-memory-bytes, "
      "--max-body-bytes-in-flight)",
      *limit / 1'000'000, needed / 1'000'000);
}

void warn_if_open(const ServerConfig& config) {
  if (!config.api_keys.empty()) return;
  if (is_loopback(config.host))
    log_warning(
        "there is no API key: every program on this machine can use the server "
        "(--api-key-file)");
  else
    log_error(
        "NO API KEY, AND {} IS REACHED BY OTHER MACHINES: everybody who reaches {} can use the "
        "server (--api-key-file; --allow-open permits this)",
        config.host.empty() ? "EVERY ADDRESS OF THIS MACHINE" : config.host,
        config.port < 0        ? fmt::format("gRPC port {}", config.grpc_port)
        : config.grpc_port < 0 ? fmt::format("HTTP port {}", config.port)
                               : fmt::format("ports {} and {}", config.port, config.grpc_port));
}

// A sentence for the log. Error: the old keys stay.
Result<std::string> reload_keys(const KeysFunction& read_keys, ApiKeys& keys_in_force) {
  KIVI_ASSIGN_OR_RETURN(const std::vector<std::string> keys, read_keys());
  if (keys.empty() && !keys_in_force.open())
    return Error{ErrorCode::invalid, "there is no API key any more"};
  keys_in_force.replace(keys);
  return fmt::format("{} API keys are in force", keys.size());
}

Result<std::string> reload_certificates(FrontEnds& fronts) {
  KIVI_RETURN_IF_ERROR(fronts.reload_certificates());
  return std::string(fronts.tls() ? "the certificates were read again" : "there is no TLS");
}

// Takes new work for as long as clients and proxies may need to notice, then refuses it and gives
// running work its time. Health checks see it at once.
void drain(const ServerConfig& config, Engine& engine, FrontEnds& fronts, AsyncLog& log) {
  const Clock::time_point start = Clock::now();
  const std::chrono::seconds delay(config.drain_delay), timeout(config.shutdown_timeout);
  const EndLimit limit(delay + timeout + 2 * kFlushTime,
                       [&log] { log.flush(AsyncLog::kFlushTime); });
  if (delay.count() > 0) {
    fronts.state().begin_leaving();
    std::this_thread::sleep_for(delay);
  }
  fronts.state().begin_drain();
  if (!engine.drain(timeout))
    log_warning("shutdown_timeout of {} s is over: running requests are aborted",
                config.shutdown_timeout);
  fronts.stop();
  log_info("drained in {:.2f} s", seconds_since(start));
}

}  // namespace

int serve(const ServerConfig& given, const std::vector<std::string>& model_names,
          const LoadFunction& load, const KeysFunction& read_keys, const ServiceManager& manager) {
  const Clock::time_point start = Clock::now();
  const std::string& model_name = model_names.front();
  ::signal(SIGPIPE, SIG_IGN);  // a reader of the log, or a client, may go away at any time
  const BlockedSignals blocked;
  AsyncLog log(given);
  redirect_library_logs();
  ServerConfig config = given;
  if (const Status fits = fit_connections(config, raise_descriptor_limit()); !fits.ok()) {
    log_error("{}", fits.error().message);
    return 1;
  }
  warn_if_open(config);
  Metrics metrics(config.metrics_prefix, model_name);
  metrics.attach_counter("log_lines_dropped_total",
                         "Log lines that standard error did not take in time.",
                         [&log] { return uint64_t(log.lines_dropped()); });
  // Outlives the front ends, which show its counters, and the engine, which tells it what the
  // prefix cache keeps.
  std::unique_ptr<KvEventPublisher> kv_events;
  if (const Status status = open_kv_events(config, metrics, kv_events); !status.ok()) {
    log_error("{}", status.error().message);
    return 1;
  }
  ServerState state(config, metrics);
  std::unique_ptr<SpanExporter> spans;
  if (!config.otlp_traces_endpoint.empty()) {
    auto made = SpanExporter::make(config.otlp_traces_endpoint);
    if (!made.ok()) {
      log_error("{}", made.error().message);
      return 1;
    }
    spans = std::move(*made);
    state.set_span_exporter(spans.get());
    metrics.attach_counter("trace_spans_dropped_total", "Spans that never reached the collector.",
                           [&spans] { return uint64_t(spans->dropped()); });
  }
  FrontEnds fronts(state);  // outlives the engine, whose notifications it takes
  Events events;
  // What SIGHUP reads again, by name. Each says in one sentence what is in force now.
  const std::vector<std::pair<const char*, std::function<Result<std::string>()>>> reloads = {
      {"API keys", [&] { return reload_keys(read_keys, state.keys()); }},
      {"certificates", [&] { return reload_certificates(fronts); }}};
  const SignalWatch signals({.stop = [&](int signal) { events.set_signal(signal); },
                             .last_words = [&] { log.flush(AsyncLog::kFlushTime); },
                             .reload =
                                 [&] {
                                   for (const auto& [name, reload] : reloads) {
                                     const Result<std::string> done = reload();
                                     if (done.ok())
                                       log_info("SIGHUP: {}", *done);
                                     else
                                       log_error("SIGHUP: the old {} stay: {}", name,
                                                 done.error().message);
                                   }
                                 }});
  if (const Status status = fronts.start(); !status.ok()) {
    log_error("{}", status.error().message);
    return 1;
  }
  manager.status("Loading the model");

  std::optional<Result<std::unique_ptr<LoadedModel>>> result;
  std::thread loader([&] {
    try {
      LoadReporter reporter(isatty(STDERR_FILENO) != 0);
      result.emplace(load([&](const std::string& phase, int64_t done, int64_t total) {
        reporter.progress(phase, done, total);
      }));
      reporter.finish();
    } catch (const std::exception& e) {  // memory, say
      result.emplace(Error{ErrorCode::internal, fmt::format("loading failed: {}", e.what())});
    }
    events.set_load_ended();
  });
  if (const int signal = events.wait(/*or_loaded=*/true); signal != 0) {
    // Loading cannot be interrupted, and nothing can be lost.
    log_info("{} while loading: ending", strsignal(signal));
    log.flush(AsyncLog::kFlushTime);
    std::_Exit(0);
  }
  loader.join();
  if (!result->ok()) {
    log_error("{}", result->error().message);
    return 1;
  }
  const std::unique_ptr<LoadedModel> loaded = std::move(*result).value();
  loaded->served.name = model_name;
  loaded->served.aliases.assign(model_names.begin() + 1, model_names.end());
  log_start(*loaded);
  warn_if_too_large(loaded->plan, config);
  loaded->engine->on_step([&metrics](int rows, double) { metrics.step(rows); });
  if (kv_events) {
    const std::string topic = config.kv_events_topic.empty()
                                  ? default_topic(fronts.http_port(), model_name)
                                  : config.kv_events_topic;
    loaded->engine->observe_prefixes(&kv_events->observer());
    const EngineStats stats = loaded->engine->stats();
    kv_events->start(topic, size_t(stats.kv_pages_total + stats.tier.host_pages_total));
    log_info("KV events: {}, topic {}", config.kv_events_endpoint, topic);
  }
  loaded->engine->start();
  metrics.attach(loaded->served);
  state.set_model(loaded->served);
  const MemoryTrim trim;
  log_info("{} is ready after {:.2f} s", model_name, seconds_since(start));
  manager.ready(fmt::format("Serving {}", model_name));

  const int signal = events.wait(/*or_loaded=*/false);
  log_info("{}: draining", strsignal(signal));
  manager.stopping("Running requests finish");
  drain(config, *loaded->engine, fronts, log);
  metrics.detach();
  return 0;
}

}  // namespace kivi
