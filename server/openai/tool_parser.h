// SPDX-License-Identifier: Apache-2.0
// ToolParser finds the tool calls in a model's text, while the text comes. The text may be split
// anywhere: the joined deltas are the same for every split.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace kivi {

// How a model writes its calls.
enum class ToolFormat {
  none,      // it writes none: all text is content
  hermes,    // <tool_call>{"name": ..., "arguments": {...}}</tool_call>, also with
             // a list inside
  llama3,    // {"name": ..., "parameters": {...}}; more of them behind a ;
  pythonic,  // [name(key="value"), ...]
  mistral,   // [TOOL_CALLS][{"name": ..., "arguments": {...}}], or
             // [TOOL_CALLS]name{...}
  list,      // [{"name": ..., "parameters": {...}}, ...]: what tool_choice required
             // writes
  arguments  // the arguments of one function, whose name is known: a named
             // tool_choice
};

// "hermes", "llama3_json", "pythonic", "mistral"; none for any other name.
ToolFormat tool_format_of(std::string_view name);
// What the chat template tells the model to write; none where it does not say.
ToolFormat tool_format_of_template(std::string_view chat_template);

struct ToolCallDelta {
  int index = 0;          // of the call, from 0
  std::string name;       // whole in the first delta of a call, empty in the others
  std::string arguments;  // more of its JSON
};

struct ToolDelta {
  std::string reasoning;  // answer_parser.h
  std::string content;
  std::vector<ToolCallDelta> calls;
  bool empty() const { return reasoning.empty() && content.empty() && calls.empty(); }
};

// The text of one choice. One owner at a time.
class ToolParser {
 public:
  virtual ~ToolParser() = default;
  // Takes more text. Appends to `out` what is certain.
  virtual void feed(std::string_view text, ToolDelta& out) = 0;
  // The text is over.
  virtual void finish(ToolDelta& out) = 0;

  int calls() const { return calls_; }

 protected:
  int calls_ = 0;
};

// `names`: the functions of the request. A call to another one is content where the format has no
// mark of its own (llama3, pythonic); for `arguments` it holds the one name.
std::unique_ptr<ToolParser> make_tool_parser(ToolFormat format, std::vector<std::string> names);

}  // namespace kivi
