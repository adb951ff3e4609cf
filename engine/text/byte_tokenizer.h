// SPDX-License-Identifier: Apache-2.0
// ByteTokenizer: a tokenizer for dummy models (--load-format dummy) that come without one, so that
// servers and load tests have text to carry. A byte of text is the token of its value; tokens above
// are spelled " #<id>".
#pragma once

#include <memory>

#include "base/result.h"
#include "engine/text/tokenizer.h"

namespace kivi {

// `vocab_size` is the model's; at least 256, else invalid. No BOS, no EOS.
Result<std::unique_ptr<Tokenizer>> make_byte_tokenizer(int vocab_size);

}  // namespace kivi
