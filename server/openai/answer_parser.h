// SPDX-License-Identifier: Apache-2.0
// What a chat's answer is made of: reasoning between tags, content and tool calls. All dialects of
// chats read an answer in this way.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "server/openai/tool_parser.h"

namespace kivi {

// How the calls in a chat's answers are found.
struct ToolSetup {
  ToolFormat format = ToolFormat::none;
  std::vector<std::string> names;  // of the functions; the one that a named tool_choice demands
  bool parallel = true;            // parallel_tool_calls; false = the first call alone is given
};

// The marks around a model's reasoning.
struct ReasoningTags {
  std::string begin, end;  // "<think>", "</think>"
  bool open = false;       // the prompt ends behind `begin`, so that the answer begins inside
};

// Reads --reasoning-tags: "BEGIN,END", "none", or "auto" = as the chat template says. Returns
// nothing where there are no tags. Error invalid for any other text.
Result<std::optional<ReasoningTags>> reasoning_tags_of(const std::string& setting,
                                                       std::string_view chat_template);

struct AnswerSetup {
  std::optional<ToolSetup> tools;          // chats whose answers may hold calls
  std::optional<ReasoningTags> reasoning;  // models whose answers may hold reasoning
  bool plain() const { return !tools && !reasoning; }
};

// Returns a parser of one choice, or null if all its text is content.
std::unique_ptr<ToolParser> make_answer_parser(const AnswerSetup& setup);

// Reads the next piece of a choice's text with the choice's parser (null: all text is content).
// `last`: no text follows. Leaves out the calls after the first one if the request wants one alone.
ToolDelta read_piece(const AnswerSetup& setup, ToolParser* parser, const std::string& text,
                     bool last);

// Reads a whole answer. Each call is one entry. Content that is blank beside calls is empty.
ToolDelta parse_answer(const AnswerSetup& setup, const std::string& text);

// A new id of a call. Mistral's templates take ids of nine letters and digits alone.
std::string make_call_id(const AnswerSetup& setup, std::string_view prefix);

bool is_blank(std::string_view text);

// Returns `arguments` if it is a JSON object, else "{}": models may write anything.
std::string json_object_or_empty(const std::string& arguments);

}  // namespace kivi
