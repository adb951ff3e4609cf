// SPDX-License-Identifier: Apache-2.0
// Finds a model's chat template: the text of its Jinja template and the file that holds it.
#pragma once

#include <optional>
#include <string>

#include "base/result.h"

namespace kivi {

struct ChatTemplateSource {
  std::string text;    // Jinja
  std::string origin;  // the file, for errors: "models/tales-llama/tokenizer_config.json"
};

// Returns the template of `model`, or nothing if it has none. `wanted` (--chat-template) is a file
// that holds the template, "none" for no template, or "" for the model's own. The model's own is,
// in a folder, the first of
//   chat_template.jinja
//   tokenizer_config.json, chat_template: a string, or a list of {name, template} with a "default"
//   chat_template.json, chat_template: the same
// and in a GGUF file (its path ends in .gguf) the metadata's tokenizer.chat_template.
// Errors name the file. Their field is chat_template.
Result<std::optional<ChatTemplateSource>> find_chat_template(const std::string& model,
                                                             const std::string& wanted);

}  // namespace kivi
