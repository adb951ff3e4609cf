// Where a model's chat template comes from: the text of its Jinja template, with the place it was
// found at.
#pragma once

#include <optional>
#include <string>

#include "base/result.h"

namespace kivi {

struct ChatTemplateSource {
  std::string text;    // Jinja
  std::string origin;  // the file, for errors: "models/tales-llama/tokenizer_config.json"
};

// The template of `model`; none where it has none. `wanted` (--chat-template) is a file with the
// template itself, "none" for no template, or "" for the model's own. That is, of a folder, the
// first of
//   chat_template.jinja
//   tokenizer_config.json, chat_template: a string, or a list of {name, template} with a "default"
//   chat_template.json, chat_template: the same
// and of a GGUF file (a path that ends so) its metadata's tokenizer.chat_template.
// Errors name the file; their field is chat_template.
Result<std::optional<ChatTemplateSource>> find_chat_template(const std::string& model,
                                                             const std::string& wanted);

}  // namespace kivi
