// SPDX-License-Identifier: Apache-2.0
#include "bench/client/record.h"

#include <utility>

namespace kivi::load {

void note_token(RequestRecord& record, double now) {
  if (record.token_events++ == 0)
    record.first_token = now;
  else
    record.gaps.push_back(float(now - record.last_token));
  record.last_token = now;
}

void note_event(RequestRecord& record, const StreamEvent& event, double now) {
  if (event.token) note_token(record, now);
  if (!event.has_usage) return;
  record.prompt_tokens = event.prompt_tokens;
  record.output_tokens = event.completion_tokens;
  record.server_count = true;
}

void note_completed(RequestRecord& record, double now) {
  record.outcome = Outcome::completed;
  record.ended = now;
  if (!record.server_count) record.output_tokens = record.token_events;
  // Tokens that never became text (special ones) were there at the end, for all that is known.
  if (record.token_events == 0) record.first_token = record.last_token = now;
}

void note_failed(RequestRecord& record, std::string kind, std::string message, double now) {
  record.outcome = Outcome::failed;
  record.ended = now;
  record.error_kind = std::move(kind);
  record.error_message = std::move(message);
  if (!record.server_count) record.output_tokens = record.token_events;
}

}  // namespace kivi::load
