// SPDX-License-Identifier: Apache-2.0
#include "server/openai/tool_parser.h"

#include <utility>

#include "server/openai/json_scanner.h"
#include "server/openai/tool_region.h"

namespace kivi {
namespace {

class ArgumentsParser final : public RegionParser {
 public:
  using RegionParser::RegionParser;

  void feed(std::string_view text, ToolDelta& out) override {
    if (calls_ == 0) {
      while (!text.empty() && is_json_blank(text.front())) text.remove_prefix(1);
      if (text.empty()) return;
      begin_call(names_.front(), out);
    }
    more_arguments(text, out);
  }
  void finish(ToolDelta&) override {}
};

class NoParser final : public ToolParser {
 public:
  void feed(std::string_view text, ToolDelta& out) override { out.content += text; }
  void finish(ToolDelta&) override {}
};

}  // namespace

ToolFormat tool_format_of(std::string_view name) {
  if (name == "hermes") return ToolFormat::hermes;
  if (name == "llama3_json") return ToolFormat::llama3;
  if (name == "pythonic") return ToolFormat::pythonic;
  if (name == "mistral") return ToolFormat::mistral;
  return ToolFormat::none;
}

ToolFormat tool_format_of_template(std::string_view t) {
  const auto has = [&](std::string_view part) { return t.find(part) != std::string_view::npos; };
  if (!has("tools")) return ToolFormat::none;
  if (has("<tool_call>")) return ToolFormat::hermes;
  if (has("[TOOL_CALLS]")) return ToolFormat::mistral;
  if (has("params_name1=params_value1") || has("func_name1(")) return ToolFormat::pythonic;
  if (has("<|python_tag|>") || has("ipython") || has("\"parameters\": dictionary"))
    return ToolFormat::llama3;
  return ToolFormat::none;
}

std::unique_ptr<ToolParser> make_tool_parser(ToolFormat format, std::vector<std::string> names) {
  switch (format) {
    case ToolFormat::hermes:
      return make_marked_parser("<tool_call>", "</tool_call>", std::move(names));
    case ToolFormat::mistral:
      return make_marked_parser("[TOOL_CALLS]", "", std::move(names));
    case ToolFormat::llama3:
    case ToolFormat::list:
      return make_bare_parser(format == ToolFormat::list, std::move(names));
    case ToolFormat::pythonic:
      return make_pythonic_parser(std::move(names));
    case ToolFormat::arguments:
      return std::make_unique<ArgumentsParser>(std::move(names));
    case ToolFormat::none:
      break;
  }
  return std::make_unique<NoParser>();
}

}  // namespace kivi
