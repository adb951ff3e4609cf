// SPDX-License-Identifier: Apache-2.0
#include "server/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <mutex>
#include <utility>

#include "base/version.h"
#include "server/process_stats.h"

namespace kivi {
namespace {

using prometheus::BuildCounter;
using prometheus::BuildHistogram;
using prometheus::ClientMetric;
using prometheus::Counter;
using prometheus::Family;
using prometheus::Histogram;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Buckets = Histogram::BucketBoundaries;
using Labels = std::vector<ClientMetric::Label>;

// Boundaries of vLLM, so that its dashboards read ours.
const Buckets kTtftBuckets = {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
                              1,     2.5,   5,    7.5,  10,   20,   40,   80,  160,  640, 2560};
const Buckets kItlBuckets = {0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5,
                             0.75, 1,     2.5,  5,     7.5, 10,   20,  40,  80};
const Buckets kLatencyBuckets = {0.3, 0.5, 0.8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                 30,  40,  50,  60, 120, 240, 480, 960, 1920, 7680};
const Buckets kTokenBuckets = {1,    2,    5,    10,    20,    50,    100,    200,   500,
                               1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000};
const Buckets kStepBuckets = {1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384};

double seconds_between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

bool reached(Clock::time_point t) { return t != Clock::time_point{}; }

// A family of one metric, made anew at each scrape from a number that somebody else keeps.
MetricFamily snapshot(std::string name, std::string help, MetricType type, double value,
                      Labels labels) {
  MetricFamily family{std::move(name), std::move(help), type, {}};
  family.metric.emplace_back();
  family.metric[0].label = std::move(labels);
  if (type == MetricType::Counter)
    family.metric[0].counter.value = value;
  else
    family.metric[0].gauge.value = value;
  return family;
}

void append_process(std::vector<MetricFamily>& out) {
  const ProcessStats stats = read_process_stats();
  const auto add = [&](const char* name, const char* help, MetricType type, double value) {
    out.push_back(snapshot(name, help, type, value, {}));
  };
  const MetricType gauge = MetricType::Gauge;
  add("process_cpu_seconds_total", "User and system CPU time.", MetricType::Counter,
      stats.cpu_seconds);
  add("process_start_time_seconds", "Start of the process, unix time.", gauge,
      stats.start_time_seconds);
  add("process_resident_memory_bytes", "Resident memory.", gauge, double(stats.resident_bytes));
  add("process_virtual_memory_bytes", "Virtual memory.", gauge, double(stats.virtual_bytes));
  add("process_open_fds", "Open file descriptors.", gauge, double(stats.open_fds));
  add("process_max_fds", "Limit of open file descriptors.", gauge, double(stats.max_fds));
}

}  // namespace

struct Metrics::Impl {
  Impl(const std::string& prefix_, const std::string& model_name_)
      : prefix(prefix_), model_name(model_name_) {}

  std::string name(const char* suffix) const { return prefix + ":" + suffix; }
  Family<Counter>& counters(const char* suffix, const char* help) {
    return BuildCounter()
        .Name(name(suffix))
        .Help(help)
        .Labels({{"model_name", model_name}})
        .Register(registry);
  }
  Histogram& histogram(const char* suffix, const char* help, const Buckets& buckets) {
    return BuildHistogram()
        .Name(name(suffix))
        .Help(help)
        .Labels({{"model_name", model_name}})
        .Register(registry)
        .Add({}, buckets);
  }
  void append_engine(std::vector<MetricFamily>& out) const;

  const std::string prefix, model_name;
  prometheus::Registry registry;
  Counter& prompt_tokens =
      counters("prompt_tokens_total", "Prompt tokens of started requests.").Add({});
  Counter& generation_tokens =
      counters("generation_tokens_total", "Generated tokens handed to clients.").Add({});
  Family<Counter>& request_success =
      counters("request_success_total", "Ended choices by finish reason.");
  Family<Counter>& admission_rejections =
      counters("admission_rejections_total", "Requests refused before they became sequences.");
  Family<Counter>& requests_aborted =
      counters("requests_aborted_total", "Running requests that ended early.");
  Family<Counter>& http_requests = counters("http_requests_total", "HTTP requests by status.");
  Family<Counter>& grpc_handled =
      counters("grpc_server_handled_total", "gRPC calls by status code.");
  Histogram& ttft =
      histogram("time_to_first_token_seconds",
                "Seconds from accepting a request to writing its first token.", kTtftBuckets);
  Histogram& inter_token = histogram("inter_token_latency_seconds",
                                     "Seconds between tokens of a streamed choice.", kItlBuckets);
  Histogram& e2e =
      histogram("e2e_request_latency_seconds",
                "Seconds from arrival to the last token of a choice.", kLatencyBuckets);
  Histogram& queue =
      histogram("request_queue_time_seconds", "Seconds from arrival to the first step of a choice.",
                kLatencyBuckets);
  Histogram& prefill =
      histogram("request_prefill_time_seconds",
                "Seconds from the first step to the first token of a choice.", kLatencyBuckets);
  Histogram& decode =
      histogram("request_decode_time_seconds",
                "Seconds from the first token to the last of a choice.", kLatencyBuckets);
  Histogram& prompt_size =
      histogram("request_prompt_tokens", "Prompt tokens of an API request.", kTokenBuckets);
  Histogram& generation_size =
      histogram("request_generation_tokens", "Generated tokens of an API request.", kTokenBuckets);
  Histogram& time_per_token =
      histogram("request_time_per_output_token_seconds",
                "Mean seconds between tokens of an API request with more than one token a choice.",
                kItlBuckets);
  Histogram& longest_choice =
      histogram("request_max_num_generation_tokens",
                "Generated tokens of the longest choice of an API request.", kTokenBuckets);
  Histogram& step_tokens =
      histogram("iteration_tokens_total", "Rows of one engine step.", kStepBuckets);

  struct OutsideCounter {
    std::string suffix, help;
    std::function<uint64_t()> count;
  };
  std::vector<OutsideCounter> outside;
  mutable std::mutex mutex;  // guards the two below
  const Engine* engine = nullptr;
  ServedModel model;
};

void Metrics::Impl::append_engine(std::vector<MetricFamily>& out) const {
  EngineStats stats;
  Labels cache_info;
  int page_tokens = 0;
  {
    std::lock_guard lock(mutex);
    if (engine == nullptr) return;
    stats = engine->stats();
    page_tokens = KvLayout{model.kv_format, {}}.page_tokens();
    const EngineConfig& config = engine->config();
    cache_info = {{"model_name", model_name},
                  {"cache_dtype", kv_format_name(model)},
                  {"block_size", std::to_string(page_tokens)},
                  {"num_blocks", std::to_string(stats.kv_pages_total)},
                  {"num_gpu_blocks", std::to_string(stats.kv_pages_total)},  // vLLM's name of it
                  {"group_size", std::to_string(model.kv_format.group)},
                  {"residual_length", std::to_string(model.kv_format.residual)},
                  {"prefill", config.kivi_prefill == PrefillMode::exact ? "exact" : "stream"}};
  }
  const Labels labels = {{"model_name", model_name}};
  const auto gauge = [&](const char* suffix, const char* help, double value) {
    out.push_back(snapshot(name(suffix), help, MetricType::Gauge, value, labels));
  };
  gauge("num_requests_running", "Sequences that are being computed.", stats.running);
  gauge("num_requests_waiting", "Sequences that wait for room.", stats.waiting);
  const int64_t pages_held = stats.kv_pages_total - stats.kv_pages_free;
  gauge("kv_cache_usage_perc", "Share of pages held, 0 to 1.",
        stats.kv_pages_total > 0 ? double(pages_held) / double(stats.kv_pages_total) : 0);
  gauge("prefix_cache_pages", "Pages that no sequence holds, kept for later requests.",
        double(stats.prefix_pages));
  gauge("prefix_cache_checkpoints", "Kept checkpoints: states from which a sequence can continue.",
        double(stats.prefix_checkpoints));
  gauge("prefix_cache_host_bytes", "Bytes of the prefix cache in the host's memory.",
        double(stats.tier.host_pages_used * stats.tier.page_bytes));
  gauge("prefix_cache_host_bytes_limit", "Limit of prefix_cache_host_bytes (0: no such part).",
        double(stats.tier.host_pages_total * stats.tier.page_bytes));
  gauge("prefix_cache_disk_bytes", "Bytes of the prefix cache on disk.",
        double(stats.tier.disk.bytes));
  gauge("prefix_cache_disk_bytes_limit",
        "Limit of prefix_cache_disk_bytes (0: none, or only read).",
        double(stats.tier.disk.bytes_limit));
  const FetchRates& rates = stats.tier.rates;
  gauge("prefix_cache_prompt_tokens_per_second",
        "Rate at which prompt tokens were computed lately (0: not known).", rates.tokens);
  gauge("prefix_cache_host_bytes_per_second",
        "Rate at which pages were copied from the host's memory lately (0: not known).",
        rates.pages * double(stats.tier.page_bytes));
  gauge("prefix_cache_disk_bytes_per_second",
        "Rate at which files of pages were read lately (0: not known).",
        rates.disk_pages * double(stats.tier.page_bytes));
  gauge("kv_cache_tokens_capacity", "Tokens that fit in the pages.",
        double(stats.kv_pages_total * page_tokens));
  MetricFamily bytes{
      name("kv_cache_bytes"), "Bytes of the cache that sequences hold.", MetricType::Gauge, {}};
  const std::pair<const char*, int64_t> parts[] = {{"codes", stats.kv_bytes.codes},
                                                   {"scales", stats.kv_bytes.parameters},
                                                   {"residual", stats.kv_bytes.residual},
                                                   {"sinks", stats.kv_bytes.sinks}};
  for (const auto& [part, value] : parts) {
    ClientMetric metric;
    metric.label = {{"model_name", model_name}, {"part", part}};
    metric.gauge.value = double(value);
    bytes.metric.push_back(std::move(metric));
  }
  out.push_back(std::move(bytes));
  out.push_back(snapshot(name("cache_config_info"), "The settings of the KV cache.",
                         MetricType::Gauge, 1, std::move(cache_info)));
  out.push_back(snapshot(name("forced_tokens_total"),
                         "Tokens that a structured output forced, and that were not sampled.",
                         MetricType::Counter, double(stats.forced_tokens), labels));
  out.push_back(snapshot(name("broken_logits_total"),
                         "Requests that ended because logits were NaN or infinite.",
                         MetricType::Counter, double(stats.broken_logits), labels));
  const auto prompt_tokens_counter = [&](const char* suffix, const char* help, uint64_t value) {
    out.push_back(snapshot(name(suffix), help, MetricType::Counter, double(value), labels));
  };
  prompt_tokens_counter("prefix_cache_queries_total",
                        "Prompt tokens of requests that may reuse earlier ones.",
                        stats.prefix.queried);
  prompt_tokens_counter("prefix_cache_hits_total", "Prompt tokens that were reused.",
                        stats.prefix.hit);
  prompt_tokens_counter("prefix_cache_reachable_total",
                        "Prompt tokens that an unbounded cache could have reused (an estimate).",
                        stats.prefix.reachable);
  prompt_tokens_counter("prefix_cache_fetched_total",
                        "Tokens that were brought back from the host's memory, or from disk.",
                        stats.tier.tokens_fetched);
  prompt_tokens_counter("prefix_cache_fetches_declined_total",
                        "Requests whose prefix was computed because that was estimated to be "
                        "faster than fetching it.",
                        stats.fetch.declined);
  prompt_tokens_counter("prefix_cache_tokens_declined_total",
                        "Tokens of requests that prefix_cache_fetches_declined_total counts.",
                        stats.fetch.tokens_declined);
  const auto page_bytes_counter = [&](const char* suffix, const char* help, uint64_t pages) {
    out.push_back(snapshot(name(suffix), help, MetricType::Counter,
                           double(pages) * double(stats.tier.page_bytes), labels));
  };
  page_bytes_counter("prefix_cache_host_written_bytes_total",
                     "Bytes copied from the store to the host's memory.", stats.tier.pages_to_host);
  page_bytes_counter("prefix_cache_host_read_bytes_total",
                     "Bytes copied from the host's memory to the store.",
                     stats.tier.pages_to_device);
  const auto disk_counter = [&](const char* suffix, const char* help, uint64_t value) {
    out.push_back(snapshot(name(suffix), help, MetricType::Counter, double(value), labels));
  };
  disk_counter("prefix_cache_disk_written_bytes_total", "Bytes of files written.",
               stats.tier.disk.bytes_written);
  disk_counter("prefix_cache_disk_read_bytes_total", "Bytes of files read.",
               stats.tier.disk.bytes_read);
  disk_counter("prefix_cache_disk_failures_total",
               "Files that could not be written or read, or did not hold what was written.",
               stats.tier.disk.write_failures + stats.tier.disk.read_failures);
  out.push_back(
      snapshot(name("prefix_cache_fetches_failed_total"),
               "Fetches given up because pages ran out, the client left, or a file was bad.",
               MetricType::Counter, double(stats.tier.fetches_failed), labels));
  out.push_back(snapshot(name("num_preemptions_total"), "Sequences sent back to the queue.",
                         MetricType::Counter, double(stats.preemptions), labels));
}

Metrics::Metrics(const std::string& prefix, const std::string& model_name)
    : impl_(std::make_unique<Impl>(prefix, model_name)) {
  // Series that exist from the start, so that rates begin at 0.
  for (FinishReason reason : {FinishReason::stop, FinishReason::length, FinishReason::abort})
    impl_->request_success.Add({{"finished_reason", name_of(reason)}});
  for (const char* reason : {"queue_full", "draining", "loading", "context_length", "connections",
                             "body_bytes", "rate_limit"})
    impl_->admission_rejections.Add({{"reason", reason}});
  for (const char* reason : {"client_disconnect", "deadline", "slow_reader", "shutdown", "api"})
    impl_->requests_aborted.Add({{"reason", reason}});
}

Metrics::~Metrics() = default;

void Metrics::attach(const ServedModel& model) {
  std::lock_guard lock(impl_->mutex);
  impl_->engine = model.engine;
  impl_->model = model;
}

void Metrics::detach() {
  std::lock_guard lock(impl_->mutex);
  impl_->engine = nullptr;
}

void Metrics::attach_counter(std::string suffix, std::string help,
                             std::function<uint64_t()> count) {
  impl_->outside.push_back({std::move(suffix), std::move(help), std::move(count)});
}

std::string Metrics::scrape() const {
  std::vector<MetricFamily> families;
  for (const auto& [suffix, help, count] : impl_->outside)
    families.push_back(snapshot(impl_->name(suffix.c_str()), help, MetricType::Counter,
                                double(count()), {{"model_name", impl_->model_name}}));
  impl_->append_engine(families);
  for (MetricFamily& family : impl_->registry.Collect()) families.push_back(std::move(family));
  families.push_back(snapshot(impl_->name("build_info"), "The version of the program.",
                              MetricType::Gauge, 1,
                              {{"model_name", impl_->model_name}, {"version", KIVI_VERSION}}));
  append_process(families);
  return prometheus::TextSerializer().Serialize(families);
}

void Metrics::http_request(std::string_view handler, std::string_view method, int status) {
  impl_->http_requests
      .Add({{"handler", std::string(handler)},
            {"method", std::string(method)},
            {"status", std::to_string(status)}})
      .Increment();
}

void Metrics::grpc_handled(std::string_view grpc_method, std::string_view grpc_code) {
  impl_->grpc_handled
      .Add({{"grpc_method", std::string(grpc_method)}, {"grpc_code", std::string(grpc_code)}})
      .Increment();
}

void Metrics::admission_rejected(std::string_view reason) {
  impl_->admission_rejections.Add({{"reason", std::string(reason)}}).Increment();
}

void Metrics::admission_rejected(const Error& error) {
  switch (error.code) {
    case ErrorCode::resource_exhausted:
      return admission_rejected("queue_full");
    case ErrorCode::unavailable:
      return admission_rejected("draining");
    case ErrorCode::context_length:
      return admission_rejected("context_length");
    default:
      return;
  }
}

void Metrics::request_aborted(std::string_view reason) {
  impl_->requests_aborted.Add({{"reason", std::string(reason)}}).Increment();
}

void Metrics::step(int rows) { impl_->step_tokens.Observe(rows); }

RequestMetrics::RequestMetrics(Metrics& metrics, Clock::time_point arrival)
    : metrics_(metrics), arrival_(arrival) {}

void RequestMetrics::count_usage(const Usage& usage) {
  Metrics::Impl& m = *metrics_.impl_;
  if (usage.prompt_tokens > figures_.usage.prompt_tokens)
    m.prompt_tokens.Increment(usage.prompt_tokens - figures_.usage.prompt_tokens);
  if (usage.completion_tokens > figures_.usage.completion_tokens)
    m.generation_tokens.Increment(usage.completion_tokens - figures_.usage.completion_tokens);
  figures_.usage = usage;
}

void RequestMetrics::polled(const Completion& completion, std::span<const TextChunk> chunks) {
  Metrics::Impl& m = *metrics_.impl_;
  count_usage(completion.usage());
  const Clock::time_point now = Clock::now();
  for (const TextChunk& chunk : chunks) {
    if (chunk.finish) {
      m.request_success.Add({{"finished_reason", name_of(*chunk.finish)}}).Increment();
      figures_.finish.push_back(*chunk.finish);
    }
    if (size_t(chunk.choice) >= choices_.size()) choices_.resize(size_t(chunk.choice) + 1);
    Choice& choice = choices_[size_t(chunk.choice)];
    const int tokens = completion.completion_tokens(chunk.choice);
    const int fresh = tokens - choice.tokens;
    if (fresh <= 0) continue;
    // Tokens that came together share the time since the last ones evenly; those that came with the
    // first one waited for nothing. So a choice of n tokens has n - 1 intervals, however they came.
    const bool first = choice.tokens == 0;
    const double interval = first ? 0 : seconds_between(choice.last, now) / fresh;
    for (int i = first ? 1 : 0; i < fresh; ++i) m.inter_token.Observe(interval);
    choice = {tokens, now};
  }
}

void RequestMetrics::first_write() {
  if (std::exchange(first_written_, true)) return;
  figures_.time_to_first_token = seconds_between(arrival_, Clock::now());
  metrics_.impl_->ttft.Observe(*figures_.time_to_first_token);
}

void RequestMetrics::finished(const Completion& completion) {
  Metrics::Impl& m = *metrics_.impl_;
  count_usage(completion.usage());
  m.prompt_size.Observe(figures_.usage.prompt_tokens);
  m.generation_size.Observe(figures_.usage.completion_tokens);
  int longest = 0;
  for (const Choice& choice : choices_) longest = std::max(longest, choice.tokens);
  m.longest_choice.Observe(longest);
  double decode_seconds = 0;
  int first_tokens = 0;
  for (const RequestTimes& t : completion.times()) {
    if (!reached(t.finished)) continue;
    m.e2e.Observe(seconds_between(t.arrival, t.finished));
    if (!reached(t.first_scheduled)) continue;
    const double queued = seconds_between(t.arrival, t.first_scheduled);
    m.queue.Observe(queued);
    if (!figures_.queue) figures_.queue = queued;
    if (!reached(t.first_token)) continue;
    m.prefill.Observe(seconds_between(t.first_scheduled, t.first_token));
    m.decode.Observe(seconds_between(t.first_token, t.finished));
    decode_seconds += seconds_between(t.first_token, t.finished);
    ++first_tokens;
    if (!std::exchange(first_written_, true)) {
      figures_.time_to_first_token = seconds_between(arrival_, t.first_token);
      m.ttft.Observe(*figures_.time_to_first_token);
    }
  }
  if (figures_.usage.completion_tokens > first_tokens) {
    figures_.time_per_token = decode_seconds / (figures_.usage.completion_tokens - first_tokens);
    m.time_per_token.Observe(*figures_.time_per_token);
  }
}

}  // namespace kivi
