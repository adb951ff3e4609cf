// SPDX-License-Identifier: Apache-2.0
// Metrics: every number that /metrics shows (docs/api.md, section "Metrics"), kept for both front
// ends. RequestMetrics: the part of it that follows one API request, so that HTTP and gRPC count
// alike.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/serving/completion.h"

namespace kivi {

// Any thread, all members. Counters of tokens count what was handed to a client, not what the
// engine computed: a client's own count and the counters agree exactly.
class Metrics {
 public:
  // `prefix` stands before the colon of every name ("kivi" -> "kivi:num_requests_running");
  // `model_name` is the label of every family.
  Metrics(const std::string& prefix, const std::string& model_name);
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  // The model is loaded: from now on a scrape shows the engine's gauges. The engine must outlive
  // detach().
  void attach(const ServedModel& model);
  void detach();

  // A scrape also shows how many log lines were dropped, as `count` says. Before the first scrape;
  // `count` may be called from any thread until the destructor.
  void attach_log(std::function<int64_t()> count);

  // The text format 0.0.4 of all families.
  std::string scrape() const;

  // handler: the route's pattern ("/v1/completions"), "other" where no route matched.
  void http_request(std::string_view handler, std::string_view method, int status);
  // grpc_method: "/kivi.v1.Kivi/Generate"; grpc_code: "OK", "INVALID_ARGUMENT", ...
  void grpc_handled(std::string_view grpc_method, std::string_view grpc_code);
  // A request that was refused before it had a sequence: "queue_full", "draining", "loading",
  // "context_length", "connections", "body_bytes", "rate_limit".
  void admission_rejected(std::string_view reason);
  // The reason of a rejection by the engine or by Completion::start; counts nothing for errors that
  // are not refusals (invalid values).
  void admission_rejected(const Error& error);
  // A running request that ended early: "client_disconnect", "deadline", "slow_reader", "shutdown",
  // "api" (Abort).
  void request_aborted(std::string_view reason);
  // For Engine::on_step.
  void step(int rows);

 private:
  friend class RequestMetrics;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Follows one API request from its arrival. One thread at a time (the reader's executor).
// Order of calls: polled() after every Completion::poll, first_write() once, finished() once.
class RequestMetrics {
 public:
  RequestMetrics(Metrics& metrics, Clock::time_point arrival);

  // Counts the chunks that poll() has just appended.
  void polled(const Completion& completion, std::span<const TextChunk> chunks);
  // The first bytes that carry a token are being written to a streaming client: TTFT.
  void first_write();
  // The request has ended, by itself or aborted: counts what is left, the latencies of every
  // engine request in times(), and for a request that did not stream, TTFT from them.
  void finished(const Completion& completion);

 private:
  struct Choice {
    int tokens = 0;
    Clock::time_point last = {};  // when `tokens` was reached
  };
  void count_usage(const Usage& usage);

  Metrics& metrics_;
  Clock::time_point arrival_;
  std::vector<Choice> choices_;
  Usage counted_;
  bool first_written_ = false;
};

}  // namespace kivi
