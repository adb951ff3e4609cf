// SPDX-License-Identifier: Apache-2.0
// Tokenizers of the SentencePiece library (tokenizer.model): Llama 1 and 2, Mistral, and others.
#pragma once

#include <memory>
#include <string>

#include "base/result.h"
#include "engine/text/tokenizer.h"
#include "engine/text/tokenizer_config.h"

namespace kivi {

// Reads tokenizer.model and the JSON files beside it. The ids of a text are those of Hugging Face's
// LlamaTokenizer (the SentencePiece one, legacy true or false) for a text that spells no special
// token:
//   - add_bos_token is true unless the configuration says otherwise, add_eos_token false;
//   - a space is put before a text that is not empty, also before one that begins with a space, if
//     the model says so (legacy) or unless add_prefix_space is false (legacy false).
// Errors name the file.
Result<std::unique_ptr<Tokenizer>> load_sentencepiece_tokenizer(const std::string& folder);

// The same from what such files hold: `model` is a serialized ModelProto. `place` stands for them
// in errors.
Result<std::unique_ptr<Tokenizer>> make_sentencepiece_tokenizer(const std::string& place,
                                                                std::string model,
                                                                const TokenizerConfig& config);

}  // namespace kivi
