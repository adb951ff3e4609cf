// SPDX-License-Identifier: Apache-2.0
#include "server/openai/answer_parser.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "server/openai/json_reader.h"
#include "server/request_id.h"

namespace kivi {
namespace {

constexpr std::string_view kBlanks = " \t\r\n";

// The number of last bytes of `text` that may be the beginning of `mark`.
size_t begun(std::string_view text, std::string_view mark) {
  for (size_t n = std::min(text.size(), mark.size() - 1); n > 0; --n)
    if (mark.starts_with(text.substr(text.size() - n))) return n;
  return 0;
}

// Takes the reasoning at the beginning of an answer out, and gives the rest to another parser.
// Blanks around the reasoning and before the content behind it are left out.
class ReasoningParser final : public ToolParser {
 public:
  ReasoningParser(ReasoningTags tags, std::unique_ptr<ToolParser> rest)
      : tags_(std::move(tags)),
        rest_(std::move(rest)),
        state_(tags_.open ? State::inside : State::before) {}

  void feed(std::string_view text, ToolDelta& out) override {
    if (state_ == State::content) return content(text, out);
    held_ += text;
    if (state_ == State::before) find_begin(out);
    if (state_ == State::inside) find_end(out);
    if (state_ == State::behind) skip_blanks(out);
  }

  void finish(ToolDelta& out) override {
    if (state_ == State::inside) out.reasoning += trimmed_end(held_);
    if (state_ == State::before) content(held_, out);
    rest_->finish(out);
    calls_ = rest_->calls();
  }

 private:
  enum class State { before, inside, behind, content };

  void content(std::string_view text, ToolDelta& out) {
    rest_->feed(text, out);
    calls_ = rest_->calls();
  }
  static std::string_view trimmed_end(std::string_view text) {
    return text.substr(0, text.find_last_not_of(kBlanks) + 1);
  }

  void find_begin(ToolDelta& out) {
    const size_t first = held_.find_first_not_of(kBlanks);
    if (first == std::string::npos) return;
    const std::string_view text = std::string_view(held_).substr(first);
    if (text.starts_with(tags_.begin)) {
      held_.erase(0, first + tags_.begin.size());
      state_ = State::inside;
    } else if (!std::string_view(tags_.begin).starts_with(text)) {
      state_ = State::content;
      content(std::exchange(held_, {}), out);
    }
  }

  void find_end(ToolDelta& out) {
    if (!any_) held_.erase(0, std::min(held_.find_first_not_of(kBlanks), held_.size()));
    const size_t end = held_.find(tags_.end);
    const bool ended = end != std::string::npos;
    const size_t certain = ended ? end : held_.size() - begun(held_, tags_.end);
    // Blanks may be the last ones.
    const std::string_view shown = trimmed_end(std::string_view(held_).substr(0, certain));
    out.reasoning += shown;
    any_ = any_ || !shown.empty();
    held_.erase(0, ended ? end + tags_.end.size() : shown.size());
    if (ended) state_ = State::behind;
  }

  void skip_blanks(ToolDelta& out) {
    const size_t first = held_.find_first_not_of(kBlanks);
    if (first == std::string::npos) return held_.clear();
    state_ = State::content;
    content(std::string_view(std::exchange(held_, {})).substr(first), out);
  }

  const ReasoningTags tags_;
  const std::unique_ptr<ToolParser> rest_;
  State state_;
  std::string held_;
  bool any_ = false;  // reasoning has been given
};

}  // namespace

bool is_blank(std::string_view text) {
  return text.find_first_not_of(kBlanks) == std::string_view::npos;
}

std::string json_object_or_empty(const std::string& arguments) {
  return parse_request_json(arguments).ok() ? arguments : "{}";
}

Result<std::optional<ReasoningTags>> reasoning_tags_of(const std::string& setting,
                                                       std::string_view chat_template) {
  if (setting == "none" || setting.empty()) return std::optional<ReasoningTags>();
  if (setting == "auto") {
    for (const auto& [begin, end] : {std::pair("<think>", "</think>"), {"[THINK]", "[/THINK]"}})
      if (chat_template.find(begin) != std::string_view::npos ||
          chat_template.find(end) != std::string_view::npos)
        return std::optional(ReasoningTags{begin, end});
    return std::optional<ReasoningTags>();
  }
  const size_t comma = setting.find(',');
  if (comma == std::string::npos || comma == 0 || comma + 1 == setting.size() ||
      setting.find(',', comma + 1) != std::string::npos)
    return Error{ErrorCode::invalid,
                 fmt::format("reasoning_tags is \"{}\", must be auto, none or two tags with a "
                             "comma between, such as <think>,</think>",
                             setting),
                 "reasoning_tags"};
  return std::optional(ReasoningTags{setting.substr(0, comma), setting.substr(comma + 1)});
}

std::unique_ptr<ToolParser> make_answer_parser(const AnswerSetup& setup) {
  if (setup.plain()) return nullptr;
  auto rest = setup.tools ? make_tool_parser(setup.tools->format, setup.tools->names)
                          : make_tool_parser(ToolFormat::none, {});
  if (!setup.reasoning) return rest;
  return std::make_unique<ReasoningParser>(*setup.reasoning, std::move(rest));
}

ToolDelta read_piece(const AnswerSetup& setup, ToolParser* parser, const std::string& text,
                     bool last) {
  ToolDelta delta;
  if (parser == nullptr) {
    delta.content = text;
    return delta;
  }
  parser->feed(text, delta);
  if (last) parser->finish(delta);
  if (setup.tools && !setup.tools->parallel)
    std::erase_if(delta.calls, [](const ToolCallDelta& call) { return call.index > 0; });
  return delta;
}

ToolDelta parse_answer(const AnswerSetup& setup, const std::string& text) {
  const auto parser = make_answer_parser(setup);
  ToolDelta parsed = read_piece(setup, parser.get(), text, /*last=*/true);
  if (parser == nullptr) return parsed;
  ToolDelta whole;
  whole.reasoning = std::move(parsed.reasoning);
  for (ToolCallDelta& call : parsed.calls) {
    if (!call.name.empty())
      whole.calls.push_back(std::move(call));
    else
      whole.calls.back().arguments += call.arguments;
  }
  if (whole.calls.empty() || !is_blank(parsed.content)) whole.content = std::move(parsed.content);
  return whole;
}

std::string make_call_id(const AnswerSetup& setup, std::string_view prefix) {
  if (setup.tools && setup.tools->format == ToolFormat::mistral)
    return make_request_id().substr(0, 9);
  return std::string(prefix) + make_request_id().substr(0, 24);
}

}  // namespace kivi
