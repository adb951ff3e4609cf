// SPDX-License-Identifier: Apache-2.0
// Tokenizers of BPE (tokenizer.json of Hugging Face's tokenizers): byte-level (Falcon, GPT-2,
// Llama 3, Qwen2) and with byte fallback (Llama 2, Mistral).
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "base/result.h"
#include "engine/text/tokenizer.h"
#include "engine/text/tokenizer_config.h"

namespace kivi {

// Reads tokenizer.json, and the JSON files beside it for the names of BOS and EOS. The ids of a
// text are those of Hugging Face's tokenizers for a text that spells no special token (such a text
// stays text). What the file asks for and is not built here (a normalizer, another model or
// pre-tokenizer, ...) is an error (unsupported) that names it. BOS and EOS are added where the
// file's post_processor says so.
Result<std::unique_ptr<Tokenizer>> load_bpe_tokenizer(const std::string& folder);

// The same from what such files hold. `place` stands for them in errors.
Result<std::unique_ptr<Tokenizer>> make_bpe_tokenizer(const std::string& place,
                                                      const nlohmann::json& tokenizer_json,
                                                      const TokenizerConfig& config);

}  // namespace kivi
