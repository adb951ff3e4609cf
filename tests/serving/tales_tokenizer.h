// SPDX-License-Identifier: Apache-2.0
// The tokenizer that the tests of this folder share.
#pragma once

#include <catch2/catch.hpp>

#include "engine/text/tokenizer.h"

namespace kivi {

inline const Tokenizer& tales_tokenizer() {
  static const auto tokenizer = load_tokenizer(KIVI_SOURCE_DIR "/models/tales-llama");
  REQUIRE(tokenizer.ok());
  return **tokenizer;
}

}  // namespace kivi
