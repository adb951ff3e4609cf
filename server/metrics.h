// SPDX-License-Identifier: Apache-2.0
// Metrics keeps every number that /metrics shows (docs/api.md, section "Metrics"), for both front
// ends. RequestMetrics follows one API request, so that HTTP and gRPC count in the same way.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/serving/completion.h"
#include "server/request_record.h"

namespace kivi {

// Any thread may call every member. The token counters count what was handed to clients, not what
// the engine computed, so the count of a client agrees exactly.
class Metrics {
 public:
  // `prefix` stands before the colon of every name ("kivi" -> "kivi:num_requests_running");
  // `model_name` is the label of every family.
  Metrics(const std::string& prefix, const std::string& model_name);
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  // Shows the gauges of the engine in every later scrape. The engine must outlive detach().
  void attach(const ServedModel& model);
  void detach();

  // Adds a counter that somebody else keeps to scrapes. `suffix` follows the prefix and the colon.
  // Call this before the first scrape. Any thread may call `count` until the destructor.
  void attach_counter(std::string suffix, std::string help, std::function<uint64_t()> count);

  // Returns all families in the text format 0.0.4.
  std::string scrape() const;

  // `handler` is the pattern of the route ("/v1/completions"), or "other" if no route matched.
  void http_request(std::string_view handler, std::string_view method, int status);
  // grpc_method: "/kivi.v1.Kivi/Generate"; grpc_code: "OK", "INVALID_ARGUMENT", ...
  void grpc_handled(std::string_view grpc_method, std::string_view grpc_code);
  // Counts a request that was refused before it had a sequence. `reason` is "queue_full",
  // "draining", "loading", "context_length", "connections", "body_bytes" or "rate_limit".
  void admission_rejected(std::string_view reason);
  // The same for an error of the engine or of Completion::start. Errors that are no refusals
  // (invalid values) are not counted.
  void admission_rejected(const Error& error);
  // Counts a running request that ended early. `reason` is "client_disconnect", "deadline",
  // "slow_reader", "shutdown" or "api" (Abort).
  void request_aborted(std::string_view reason);
  // For Engine::on_step.
  void step(int rows);

 private:
  friend class RequestMetrics;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Follows one API request from its arrival. One thread at a time (the executor of the reader) may
// use it. Call polled() after every Completion::poll, first_write() once and finished() once.
class RequestMetrics {
 public:
  RequestMetrics(Metrics& metrics, Clock::time_point arrival);

  // Counts the chunks that poll() has just appended.
  void polled(const Completion& completion, std::span<const TextChunk> chunks);
  // Measures TTFT: the first bytes with a token are about to be written to a streaming client.
  void first_write();
  // The request has ended, by itself or by an abort. Counts the rest, the latencies of every engine
  // request in times(), and the TTFT of a request that did not stream.
  void finished(const Completion& completion);
  // What the access line and the span say. Whole after finished().
  const RequestFigures& figures() const { return figures_; }

 private:
  struct Choice {
    int tokens = 0;
    Clock::time_point last = {};  // when `tokens` was reached
  };
  void count_usage(const Usage& usage);

  Metrics& metrics_;
  Clock::time_point arrival_;
  std::vector<Choice> choices_;
  RequestFigures figures_;  // `usage`: as counted so far
  bool first_written_ = false;
};

}  // namespace kivi
