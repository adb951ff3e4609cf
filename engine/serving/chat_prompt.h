// SPDX-License-Identifier: Apache-2.0
// ChatPrompt turns a chat into the token ids of its prompt. The model's template writes the text.
// Special tokens that the template spells become their ids. Those that a message spells stay text,
// so that a message cannot forge a turn.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "base/result.h"
#include "engine/serving/chat_template_source.h"
#include "engine/text/tokenizer.h"

namespace kivi {

struct ChatInput {
  // An object whose members the template sees as variables: `messages` (a list of at least one
  // object) and others that the caller gives, such as `tools` and `documents`. Not null.
  std::shared_ptr<const nlohmann::ordered_json> variables;
  bool add_generation_prompt = true;  // end where the assistant's answer begins
  // End inside the last message, which the model continues. Not with add_generation_prompt.
  bool continue_final_message = false;
  size_t text_bytes_max = 0;        // of the text that is tokenized; 0: no limit
  bool add_special_tokens = false;  // BOS before it, as before a text; templates write their own
};

// Immutable. Any thread may use it.
class ChatPrompt {
 public:
  // The errors are those of ChatTemplate::parse. `tokenizer` must outlive the result.
  static Result<std::unique_ptr<ChatPrompt>> make(const ChatTemplateSource& source,
                                                  const Tokenizer& tokenizer);
  virtual ~ChatPrompt() = default;

  // Returns the text, as Transformers' apply_chat_template does, with the tokenizer's bos_token and
  // eos_token. Errors come from the template. Their field is `messages`.
  virtual Result<std::string> text(const ChatInput& input) const = 0;
  // Returns the ids of that text.
  virtual Result<std::vector<int32_t>> ids(const ChatInput& input) const = 0;

  virtual const std::string& template_text() const = 0;  // the Jinja source
};

}  // namespace kivi
