// SPDX-License-Identifier: Apache-2.0
// What one event of an OpenAI stream says to a load generator. Events are scanned for a few keys;
// only those with usage or an error, one a stream, are parsed as JSON.
#pragma once

#include <string>
#include <string_view>

namespace kivi::load {

struct StreamEvent {
  bool done = false;      // [DONE]
  bool token = false;     // carries text, or stands for a token without text
  bool finished = false;  // holds a finish_reason
  bool has_usage = false;
  int prompt_tokens = 0, completion_tokens = 0;  // has_usage
  std::string error;                             // the message of an "error" event
  bool bad = false;                              // neither [DONE] nor a JSON object
};

// `data`: of one event; a completion's or a chat's chunk.
StreamEvent read_event(std::string_view data);

// The message of an error reply's body: error.message, detail or message of its JSON, else the
// beginning of the text.
std::string error_message(std::string_view body);

}  // namespace kivi::load
