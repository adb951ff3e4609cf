// SPDX-License-Identifier: Apache-2.0
// Texts that break things: for the property tests of text handling. All are valid UTF-8.
#pragma once

#include <string>
#include <vector>

namespace kivi::testing {

inline std::vector<std::string> awkward_texts() {
  using namespace std::string_literals;
  return {
      "",
      " ",
      "    ",
      "\n",
      "Once upon a time there was a king who had three daughters",
      " leading, and trailing ",
      "  two  everywhere  ",
      "tab\there\r\nline",
      "nul\0inside\0"s,
      "\x01\x02\x1F\x7F",
      "Gr\u00FC\u00DFe, na\u00EFve caf\u00E9",
      "e\u0301 A\u030A\u0323 combining",
      "\u4F60\u597D\uFF0C\u4E16\u754C \u65E5\u672C\u8A9E",
      "\uD55C\uAD6D\uC5B4 \u05E9\u05DC\u05D5\u05DD \u0645\u0631\u062D\u0628\u0627",
      "\U0001F44D\U0001F3FD \U0001F468\u200D\U0001F469\u200D\U0001F467\u200D\U0001F466 "
      "\U0001F1E9\U0001F1EA \U0001F3F3\uFE0F\u200D\U0001F308",
      "\U0010FFFF\U00010000\uFFFD\uFEFF\u200B\u0080",
      "</s> <s> <unk> <0x0A> [INST]",
      "def f(x):\n\treturn x ** 2  # \"quoted\"\n",
      std::string(300, 'a'),
      std::string(300, ' ') + "x",
  };
}

}  // namespace kivi::testing
