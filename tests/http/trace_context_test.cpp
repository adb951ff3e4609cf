// SPDX-License-Identifier: Apache-2.0
// The header traceparent: what is read, and what is handed on.
#include "server/trace_context.h"

#include <catch2/catch.hpp>

#include "tests/http/http_fixture.h"

using namespace kivi;
using namespace kivi::testing;

namespace {
const std::string kTrace = "0af7651916cd43dd8448eb211c80319c", kParent = "b7ad6b7169203331";
}

TEST_CASE("a trace that is given goes on under a span of our own") {
  const TraceContext context = make_trace_context("00-" + kTrace + "-" + kParent + "-01");
  CHECK(context.trace_id == kTrace);
  CHECK(context.parent_id == kParent);
  CHECK(context.sampled);
  CHECK(context.span_id.size() == 16);
  CHECK(context.span_id != kParent);
  CHECK(context.header() == "00-" + kTrace + "-" + context.span_id + "-01");
  const TraceContext other = make_trace_context("00-" + kTrace + "-" + kParent + "-02");
  CHECK_FALSE(other.sampled);
  CHECK(other.header().ends_with("-00"));
  CHECK(other.span_id != context.span_id);
  // The last bit of each hexadecimal digit.
  for (const char digit : std::string("0123456789abcdef")) {
    const std::string flags = std::string("-0") + digit;
    const bool sampled = make_trace_context("00-" + kTrace + "-" + kParent + flags).sampled;
    CHECK(sampled == (std::string("13579bdf").find(digit) != std::string::npos));
  }
  // Later versions begin alike, and may have more.
  CHECK(usable_traceparent("cc-" + kTrace + "-" + kParent + "-01-more"));
}

TEST_CASE("a header that names no trace begins a new one") {
  const std::string good = "00-" + kTrace + "-" + kParent + "-01";
  REQUIRE(usable_traceparent(good));
  std::vector<std::string> wrong = {"",
                                    "00",
                                    good + "0",
                                    good + "-x",
                                    "ff" + good.substr(2),
                                    "0x" + good.substr(2),
                                    "00-" + std::string(32, '0') + "-" + kParent + "-01",
                                    "00-" + kTrace + "-" + std::string(16, '0') + "-01"};
  for (const size_t at : {2, 3, 34, 35, 36, 51, 52, 53, 54}) {
    std::string broken = good;
    broken[at] = 'G';
    wrong.push_back(broken);
  }
  for (const std::string& header : wrong) {
    INFO(header);
    CHECK_FALSE(usable_traceparent(header));
    const TraceContext context = make_trace_context(header);
    CHECK(context.trace_id.size() == 32);
    CHECK(context.trace_id != kTrace);
    CHECK(context.parent_id.empty());
  }
}

TEST_CASE("a reply names our span, to those who have sent a trace") {
  TestServer server;
  const Response traced =
      server.get("/health", "traceparent: 00-" + kTrace + "-" + kParent + "-01\r\n");
  CHECK(traced.header("traceparent").starts_with("00-" + kTrace + "-"));
  CHECK(traced.header("traceparent").find(kParent) == std::string::npos);
  CHECK(server.get("/health").header("traceparent").empty());
  CHECK(server.get("/health", "traceparent: 00-x\r\n").header("traceparent").empty());
}
