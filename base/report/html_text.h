// SPDX-License-Identifier: Apache-2.0
// Text in an HTML or SVG page.
#pragma once

#include <string>

namespace kivi {

// &, <, > and both quotes as entities.
inline std::string escape_html(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '&')
      out += "&amp;";
    else if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (c == '"')
      out += "&quot;";
    else if (c == '\'')
      out += "&#39;";
    else
      out += c;
  }
  return out;
}

}  // namespace kivi
