// SPDX-License-Identifier: Apache-2.0
// JSON text by hand, appended to a buffer that is used again: for replies on the hot path.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace kivi {

// Appends `text` as a JSON string with its quotes. Bytes that are not UTF-8 become U+FFFD, so that
// the result is always valid JSON; everything else but `"`, `\`, control characters and Unicode's
// line separators is kept as it is. No line break is ever written (SSE needs one-line data).
void append_json_string(std::string& out, std::string_view text);

void append_json_int(std::string& out, int64_t value);

// The shortest decimal that reads back as the same float. JSON has no infinities: -inf is written
// as -9999.0 (vLLM's convention for logprobs), NaN as null.
void append_json_float(std::string& out, float value);

// Appends "[", what `append` writes for each item with commas between, "]".
template <class Items, class Append>
void append_json_list(std::string& out, const Items& items, const Append& append) {
  out += '[';
  bool first = true;
  for (const auto& item : items) {
    if (!first) out += ',';
    first = false;
    append(item);
  }
  out += ']';
}

}  // namespace kivi
