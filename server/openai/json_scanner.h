// SPDX-License-Identifier: Apache-2.0
// Reading JSON by hand: what strings hold, and values that are not whole yet, as a model writes
// them.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace kivi {

inline bool is_json_blank(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

// The four digits of an escape \u at `at`; -1: they are none.
int escaped_unit(std::string_view text, size_t at);

// Appends the text of a JSON string, given with its quotes. Returns false if it is none.
bool unquote_json(std::string_view json, std::string& out);

// Reads one JSON value byte by byte and tells when it is whole. Checks brackets and strings, not
// the rest: what a model writes goes to the client as it is.
class JsonValueScanner {
 public:
  enum class State { more, whole, whole_before, wrong };

  // `whole`: the value ends with this byte. `whole_before`: it ended before this byte (a number).
  State take(char c);

 private:
  int depth_ = 0;
  bool string_ = false, escaped_ = false, scalar_ = false;
};

}  // namespace kivi
