// SPDX-License-Identifier: Apache-2.0
// ChatTemplate is a model's Jinja template, which turns a chat into the text that the model was
// trained on. Its language is that of Transformers: an ImmutableSandboxedEnvironment with
// trim_blocks, lstrip_blocks and loop controls, a `tojson` that keeps every character,
// `raise_exception`, `strftime_now` and the `generation` tag. engine/jinja implements the language.
#pragma once

#include <ctime>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "base/result.h"
#include "engine/serving/chat_template_source.h"

namespace kivi {

class ChatTemplate {
 public:
  // Errors name the origin and the line. An unsupported construct is named (`unsupported`). The
  // field of the errors is chat_template.
  static Result<ChatTemplate> parse(const ChatTemplateSource& source);
  ~ChatTemplate();
  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;

  // Renders the template. `variables` is an object whose members the template sees by their names.
  // `now` is the time that strftime_now shows, in the process's time zone. Any thread.
  //
  // The cost is bounded:
  // - 4 million steps (nodes evaluated, items looked at), plus 32 for each value or 64 bytes of
  //   text in `variables`;
  // - 64 MiB of values, plus 16 times the text of `variables`;
  // - 64 MiB of text.
  //
  // An error (`invalid`, `unsupported`) holds the message of raise_exception, or names the
  // template's line.
  Result<std::string> render(const nlohmann::ordered_json& variables, std::time_t now) const;

  const std::string& text() const;  // the Jinja source

 private:
  struct State;
  explicit ChatTemplate(std::unique_ptr<const State> state);
  std::unique_ptr<const State> state_;
};

}  // namespace kivi
