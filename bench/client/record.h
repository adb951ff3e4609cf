// SPDX-License-Identifier: Apache-2.0
// What is kept of one request: times, counts, how it ended.
#pragma once

#include <string>
#include <vector>

#include "bench/client/stream_event.h"

namespace kivi::load {

enum class Outcome {
  completed,
  cancelled,  // by us, as the workload wants
  failed,     // error_kind says how
};

// Times are seconds since the run's start.
struct RequestRecord {
  Outcome outcome = Outcome::failed;
  // The intended start, from which latencies count: the schedule's in an open loop, else when the
  // request before it left its place free. A late start is the server's or ours to answer for; it
  // never hides (coordinated omission).
  double due = 0;
  double started = 0;  // the generator turned to it
  double late = 0;     // started, less the time from which nothing but the generator kept it
  double first_token = 0, last_token = 0;
  double ended = 0;
  int prompt_tokens = 0;      // the server's count, else what was asked for
  int output_tokens = 0;      // the server's count, else events
  int token_events = 0;       // events that carried text; several tokens may share one
  bool server_count = false;  // usage has come
  std::vector<float> gaps;    // seconds between token events that follow each other
  std::string error_kind;  // "connect", "HTTP 503", "timeout", "closed", ...; "" where not failed
  std::string error_message;
};

// Takes an event that was read at `now`.
void note_event(RequestRecord& record, const StreamEvent& event, double now);
// `now`: a message came that carries text (note_event calls it for events).
void note_token(RequestRecord& record, double now);
// The stream has ended as it should.
void note_completed(RequestRecord& record, double now);
void note_failed(RequestRecord& record, std::string kind, std::string message, double now);

}  // namespace kivi::load
