// SPDX-License-Identifier: Apache-2.0
// TraceContext is the place of a request in a distributed trace (W3C Trace Context).
#pragma once

#include <string>
#include <string_view>

namespace kivi {

struct TraceContext {
  std::string trace_id;   // 32 hexadecimal digits
  std::string parent_id;  // 16 of the caller's span; "" if the trace begins here
  std::string span_id;    // 16 of our own span
  bool sampled = true;    // false: the caller does not want the trace recorded

  // The header `traceparent` that names our span.
  std::string header() const;
};

// Reads a `traceparent`, and makes the id of our own span. A header that is absent or broken begins
// a new trace.
TraceContext make_trace_context(std::string_view traceparent);

// Returns true if the header names a trace: version 00, or a later one that begins alike.
bool usable_traceparent(std::string_view traceparent);

}  // namespace kivi
