// SPDX-License-Identifier: Apache-2.0
// What a load generator needs to know of one event of an OpenAI stream. Events are scanned for a
// few keys. Only events with usage or an error (about one a stream) are parsed as JSON.
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

// Reads the data of one event: a chunk of a completion or of a chat.
StreamEvent read_event(std::string_view data);

// Returns the message of the body of an error reply: error.message, detail or message of its JSON,
// else the beginning of the text.
std::string error_message(std::string_view body);

}  // namespace kivi::load
