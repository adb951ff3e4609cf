// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <random>

#include "base/utf8.h"
#include "base/verify.h"
#include "server/openai/answer_parser.h"
#include "tests/fuzz/targets.h"

namespace kivi::fuzz {
namespace {

struct Call {
  std::string name, arguments;
  friend bool operator==(const Call&, const Call&) = default;
};

struct Answer {
  std::string reasoning, content;
  std::vector<Call> calls;
  friend bool operator==(const Answer&, const Answer&) = default;
};

AnswerSetup setup_of(unsigned char byte) {
  static constexpr ToolFormat kFormats[] = {
      ToolFormat::none,    ToolFormat::hermes, ToolFormat::llama3,   ToolFormat::pythonic,
      ToolFormat::mistral, ToolFormat::list,   ToolFormat::arguments};
  AnswerSetup setup;
  ToolSetup tools{kFormats[byte % 8 % std::size(kFormats)], {"f", "get_weather"}, byte < 128};
  if (tools.format == ToolFormat::arguments) tools.names = {"f"};
  setup.tools = std::move(tools);
  if ((byte & 8) != 0) setup.reasoning = ReasoningTags{"<think>", "</think>", (byte & 16) != 0};
  return setup;
}

// Takes the text in pieces of up to `longest` bytes.
Answer answer(const AnswerSetup& setup, std::string_view text, size_t longest,
              std::mt19937& random) {
  const auto parser = make_answer_parser(setup);
  Answer out;
  bool last = false;
  while (!last) {
    const std::string piece(text.substr(0, 1 + random() % longest));
    text.remove_prefix(piece.size());
    last = text.empty();
    const ToolDelta delta = read_piece(setup, parser.get(), piece, last);
    out.reasoning += delta.reasoning;
    out.content += delta.content;
    for (const ToolCallDelta& call : delta.calls) {
      if (!call.name.empty()) out.calls.push_back({call.name, ""});
      KIVI_VERIFY(call.index + 1 == int(out.calls.size()));  // calls come one after another
      out.calls.back().arguments += call.arguments;
    }
  }
  return out;
}

}  // namespace

bool read_answer(std::string_view bytes) {
  if (bytes.empty()) return false;
  const AnswerSetup setup = setup_of(static_cast<unsigned char>(bytes[0]));
  const std::string_view text = bytes.substr(1);
  std::mt19937 random(uint32_t(std::hash<std::string_view>{}(bytes)));
  const Answer whole = answer(setup, text, std::max<size_t>(text.size(), 1) * 1000, random);
  KIVI_VERIFY(answer(setup, text, 1, random) == whole);
  KIVI_VERIFY(answer(setup, text, 9, random) == whole);
  KIVI_VERIFY(parse_answer(setup, std::string(text)).calls.size() == whole.calls.size());
  const ToolSetup& tools = *setup.tools;
  KIVI_VERIFY(tools.parallel || whole.calls.size() <= 1);
  const bool valid = is_valid_utf8(text);
  for (const Call& call : whole.calls) {
    if (tools.format == ToolFormat::llama3 || tools.format == ToolFormat::pythonic ||
        tools.format == ToolFormat::arguments)
      KIVI_VERIFY(std::find(tools.names.begin(), tools.names.end(), call.name) !=
                  tools.names.end());
    KIVI_VERIFY(!valid || (is_valid_utf8(call.name) && is_valid_utf8(call.arguments)));
  }
  KIVI_VERIFY(!valid || (is_valid_utf8(whole.content) && is_valid_utf8(whole.reasoning)));
  return !whole.calls.empty() || !whole.reasoning.empty();
}

}  // namespace kivi::fuzz
