// SPDX-License-Identifier: Apache-2.0
// What the log and a trace say about a request that has ended. Never its text.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/serving/completion.h"
#include "server/trace_context.h"

namespace kivi {

class ServerState;

// Figures of a request that had sequences.
struct RequestFigures {
  Usage usage;
  // Seconds: of the first sequence in the queue; from arrival to the first token's write; between
  // the tokens of a sequence, on average. Absent where the request did not come so far.
  std::optional<double> queue, time_to_first_token, time_per_token;
  std::vector<FinishReason> finish;  // of the choices, in the order in which they ended
};

// What was asked of the model.
struct RequestAsked {
  const char* operation = "";  // "chat" or "text_completion"
  std::string reply_id;        // "chatcmpl-..."
  int max_tokens = 0;
  float temperature = 0, top_p = 0;
  int top_k = 0, n = 1;
};
RequestAsked asked_of(const CompletionRequest& request, const char* operation);

struct RequestRecord {
  std::string_view protocol;  // "HTTP" or "gRPC"
  std::string_view method;    // "POST"; "" for gRPC
  std::string_view path;      // the route's pattern, or the full name of a gRPC method
  std::string status;         // "200", "OK"
  bool failed = false;        // the server is at fault
  Clock::time_point arrival;
  std::string request_id;  // "": none
  std::string tenant;      // tenant.h: an id of the key, or the client's address
  TraceContext trace;
  std::optional<RequestAsked> asked;  // of a request that was parsed
  std::optional<RequestFigures> figures;
  std::string objective, fairness_id;  // gateway.h; "": none
};

// Returns true if somebody wants records. Otherwise do not make one.
bool wants_records(const ServerState& state);

// Writes the access line, with --enable-log-requests, and hands the span of a request with
// sequences to the exporter, if there is one. Never waits. Any thread.
void record_request(ServerState& state, const RequestRecord& record);

}  // namespace kivi
