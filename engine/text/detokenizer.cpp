// SPDX-License-Identifier: Apache-2.0
#include "engine/text/detokenizer.h"

namespace kivi {

Detokenizer::Detokenizer(const Tokenizer& tokenizer, bool skip_special, TextStart start)
    : tokenizer_(&tokenizer), skip_special_(skip_special), at_start_(start == TextStart::fresh) {}

void Detokenizer::push(int32_t id, std::string& out) {
  std::string_view bytes = tokenizer_->token_bytes(id, skip_special_);
  if (bytes.empty()) return;
  if (at_start_) {
    at_start_ = false;
    if (bytes.front() == ' ' && tokenizer_->strips_leading_space()) bytes.remove_prefix(1);
  }
  utf8_.append(bytes, out);
}

}  // namespace kivi
