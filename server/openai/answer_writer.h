// SPDX-License-Identifier: Apache-2.0
// AnswerWriter writes the reply of one request in the JSON of a dialect. The writers of all
// dialects read the same chunks.
#pragma once

#include <map>
#include <span>
#include <string>

#include "engine/serving/completion.h"

namespace kivi {

// One thread at a time.
class AnswerWriter {
 public:
  virtual ~AnswerWriter() = default;

  // Appends the server-sent events for `chunk` of `completion`.
  virtual void append_event(std::string& out, const TextChunk& chunk,
                            const Completion& completion) = 0;
  // Appends the events that end a stream whose choices have all ended.
  virtual void append_end(std::string& out, const Completion& completion) = 0;
  // Appends the events that end a stream which failed after its first event.
  virtual void append_failure(std::string& out, const Error& error) = 0;

  // Returns the reply of a request that does not stream. `chunks`: all of them, in any order.
  virtual std::string whole(std::span<const TextChunk> chunks,
                            const Completion& completion) const = 0;
};

// Returns the chunks of each choice joined into one, in the order of the choices.
std::map<int, TextChunk> join_choices(std::span<const TextChunk> chunks);

}  // namespace kivi
