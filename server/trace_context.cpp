// SPDX-License-Identifier: Apache-2.0
#include "server/trace_context.h"

#include <fmt/format.h>

#include <algorithm>

#include "server/request_id.h"

namespace kivi {
namespace {

// "00-" + 32 digits + "-" + 16 digits + "-" + 2 digits.
constexpr size_t kTrace = 3, kParent = 36, kFlags = 53, kLength = 55;

bool is_hex(std::string_view text) {
  return std::ranges::all_of(
      text, [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

bool is_zero(std::string_view text) {
  return text.find_first_not_of('0') == std::string_view::npos;
}

}  // namespace

bool usable_traceparent(std::string_view t) {
  if (t.size() < kLength || t[2] != '-' || t[kParent - 1] != '-' || t[kFlags - 1] != '-')
    return false;
  const std::string_view version = t.substr(0, 2), trace = t.substr(kTrace, 32),
                         parent = t.substr(kParent, 16), flags = t.substr(kFlags, 2);
  if (!is_hex(version) || version == "ff" || !is_hex(trace) || !is_hex(parent) || !is_hex(flags))
    return false;
  // Version 00 has nothing more; later ones may.
  if (t.size() > kLength && (version == "00" || t[kLength] != '-')) return false;
  return !is_zero(trace) && !is_zero(parent);
}

TraceContext make_trace_context(std::string_view traceparent) {
  TraceContext context;
  const std::string fresh = make_request_id();
  context.span_id = fresh.substr(0, 16);
  if (!usable_traceparent(traceparent)) {
    context.trace_id = make_request_id();
    return context;
  }
  context.trace_id = traceparent.substr(kTrace, 32);
  context.parent_id = traceparent.substr(kParent, 16);
  const char last = traceparent[kFlags + 1];
  context.sampled = ((last <= '9' ? last - '0' : last - 'a' + 10) & 1) != 0;
  return context;
}

std::string TraceContext::header() const {
  return fmt::format("00-{}-{}-{}", trace_id, span_id, sampled ? "01" : "00");
}

}  // namespace kivi
