// SPDX-License-Identifier: Apache-2.0
// What the parsers of tool_parser.h have in common. Included by tool_*.cpp alone.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "server/openai/tool_parser.h"

namespace kivi {

// Parsers that see text until a region of calls begins, and that give a region back as content if
// it turns out to be none.
class RegionParser : public ToolParser {
 public:
  explicit RegionParser(std::vector<std::string> names) : names_(std::move(names)) {}

 protected:
  bool known(const std::string& name) const {
    return std::ranges::find(names_, name) != names_.end();
  }
  void begin_call(std::string name, ToolDelta& out) {
    out.calls.push_back({calls_++, std::move(name), ""});
  }
  void more_arguments(std::string_view text, ToolDelta& out) {
    if (text.empty()) return;
    if (!out.calls.empty() && out.calls.back().index == calls_ - 1)
      out.calls.back().arguments += text;
    else
      out.calls.push_back({calls_ - 1, "", std::string(text)});
  }

  std::vector<std::string> names_;
};

// tool_objects.cpp. Calls are objects between the marks; `end` is empty where there is no end mark.
std::unique_ptr<ToolParser> make_marked_parser(std::string begin, std::string end,
                                               std::vector<std::string> names);
// tool_objects.cpp. Calls are objects from the beginning of the text on; `list`: in a list.
std::unique_ptr<ToolParser> make_bare_parser(bool list, std::vector<std::string> names);
// tool_pythonic.cpp.
std::unique_ptr<ToolParser> make_pythonic_parser(std::vector<std::string> names);

}  // namespace kivi
