// ChatTemplate: a model's Jinja template, which turns a chat into the text that the model was
// trained on. Its language is what Transformers gives to chat templates: an
// ImmutableSandboxedEnvironment with trim_blocks, lstrip_blocks and loop controls, `tojson` that
// keeps every character, `raise_exception`, `strftime_now` and the `generation` tag. engine/jinja
// holds the language itself.
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
  // Errors name the origin and the line; what is not supported is named (unsupported). Their field
  // is chat_template.
  static Result<ChatTemplate> parse(const ChatTemplateSource& source);
  ~ChatTemplate();
  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;

  // Any thread. `variables`: an object, whose members the template sees by their names. `now` is
  // what strftime_now tells, in the process's time zone.
  //
  // What it costs is bounded: 4 million steps (nodes evaluated, items looked at) and 32 for each
  // value or 64 bytes of text in `variables`; 64 MiB of values and 16 times the text of
  // `variables`; 64 MiB of text.
  // Errors (invalid; unsupported) say what the template said with raise_exception, or name its
  // line.
  Result<std::string> render(const nlohmann::ordered_json& variables, std::time_t now) const;

  const std::string& text() const;  // the Jinja source

 private:
  struct State;
  explicit ChatTemplate(std::unique_ptr<const State> state);
  std::unique_ptr<const State> state_;
};

}  // namespace kivi
