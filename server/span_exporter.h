// SPDX-License-Identifier: Apache-2.0
// SpanExporter sends spans to an OpenTelemetry collector, as OTLP's JSON over HTTP.
//
// A thread of its own sends, behind a bounded queue. A collector that is slow or gone costs spans,
// and no other thread waits for it. Without spans the thread sleeps.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "base/result.h"
#include "server/trace_context.h"

namespace kivi {

struct RequestSpan {
  TraceContext trace;
  std::string name;
  std::chrono::system_clock::time_point begin, end;
  std::string attributes;  // JSON: OTLP's key-value objects with commas between
  bool failed = false;
};

// Any thread, but for make() and the destructor.
class SpanExporter {
 public:
  // `url`: http://HOST[:PORT][/PATH]; without a path, /v1/traces. Error invalid with the field
  // otlp_traces_endpoint for any other text. Connects when the first span is there.
  static Result<std::unique_ptr<SpanExporter>> make(const std::string& url);
  ~SpanExporter();  // gives the spans that are left kFlushTime
  SpanExporter(const SpanExporter&) = delete;
  SpanExporter& operator=(const SpanExporter&) = delete;

  static constexpr std::chrono::seconds kFlushTime{2};

  // Returns true if the queue has room. If it has none, add() drops the span.
  bool has_room() const;
  void add(RequestSpan span);
  // Counts a span that was not even made.
  void drop();
  // Spans that never reached the collector.
  int64_t dropped() const;

 private:
  struct Impl;
  explicit SpanExporter(std::shared_ptr<Impl> impl);
  std::shared_ptr<Impl> impl_;  // shared with the thread, which may outlive a hanging look-up
};

}  // namespace kivi
