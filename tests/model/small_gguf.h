// SPDX-License-Identifier: Apache-2.0
// Two whole GGUF models of a few kilobytes, with either kind of tokenizer, and a reader that goes
// all the way: where mutations and fuzzing of that format start.
#pragma once

#include <string>

#include "kernels/backend.h"
#include "tests/model/gguf_writer.h"

namespace kivi {

GgufWriter small_gguf_bpe();
GgufWriter small_gguf_sentencepiece();

// Reads all that there is: tokenizer, configuration, weights. How far it came: 0 not a file, 1 not
// a model, 2 a model.
int read_gguf_file(const std::string& bytes, Backend& backend);

}  // namespace kivi
