// ChatPrompt: from a chat to the ids of its prompt. The model's template writes the text; special
// tokens that the template spells become their ids, those that a message spells stay text, so that
// a message cannot forge a turn.
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
  // An object, whose members the template sees as variables: `messages` (a list of objects, at
  // least one), and what else the caller gives: `tools`, `documents`, ... Not null.
  std::shared_ptr<const nlohmann::ordered_json> variables;
  bool add_generation_prompt = true;  // ends where the assistant's answer begins
  // Ends inside the last message, which the model goes on with. Not with add_generation_prompt.
  bool continue_final_message = false;
  size_t text_bytes_max = 0;        // of the text that is tokenized; 0: no limit
  bool add_special_tokens = false;  // BOS before it, as before a text; templates write their own
};

// Immutable; any thread.
class ChatPrompt {
 public:
  // Errors as those of ChatTemplate::parse. `tokenizer` outlives it.
  static Result<std::unique_ptr<ChatPrompt>> make(const ChatTemplateSource& source,
                                                  const Tokenizer& tokenizer);
  virtual ~ChatPrompt() = default;

  // The text, as Transformers' apply_chat_template gives it, with bos_token and eos_token of the
  // tokenizer. Errors are the template's; their field is `messages`.
  virtual Result<std::string> text(const ChatInput& input) const = 0;
  // Its ids.
  virtual Result<std::vector<int32_t>> ids(const ChatInput& input) const = 0;

  virtual const std::string& template_text() const = 0;  // the Jinja source
};

}  // namespace kivi
