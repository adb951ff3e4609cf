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
  // The intended start, from which latencies count. In an open loop the schedule sets it; in a
  // closed loop it is the end of the request before. So a late start never hides in the figures
  // (coordinated omission).
  double due = 0;
  double started = 0;  // the generator turned to it
  double late = 0;     // by how much the generator alone delayed the start
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

// Adds an event that was read at `now`.
void note_event(RequestRecord& record, const StreamEvent& event, double now);
// Notes that a message with text came at `now` (note_event calls this for events).
void note_token(RequestRecord& record, double now);
// The stream has ended as it should.
void note_completed(RequestRecord& record, double now);
void note_failed(RequestRecord& record, std::string kind, std::string message, double now);

}  // namespace kivi::load
