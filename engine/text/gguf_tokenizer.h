// SPDX-License-Identifier: Apache-2.0
// Translates the tokenizer in a GGUF file's metadata back into the file that it was made from: a
// tokenizer.json for byte-level BPE ("gpt2"), or a SentencePiece model for "llama". So the
// tokenizers need not know GGUF, and a text gets the ids that it gets from the original folder.
#pragma once

#include <memory>

#include "base/result.h"
#include "engine/model/files/gguf.h"
#include "engine/text/tokenizer.h"

namespace kivi {

// Other kinds of tokenizers (tokenizer.ggml.model) and unknown split patterns (tokenizer.ggml.pre)
// are refused by name. BOS and EOS are added where add_bos_token and add_eos_token say so; without
// them as llama.cpp does it: BOS for SentencePiece and for Llama 3, no EOS.
Result<std::unique_ptr<Tokenizer>> make_gguf_tokenizer(const GgufHeader& header);

}  // namespace kivi
