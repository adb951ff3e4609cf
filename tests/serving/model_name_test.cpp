// SPDX-License-Identifier: Apache-2.0
// The name under which a model is served.
#include <catch2/catch.hpp>

#include "engine/serving/load.h"

namespace kivi {

TEST_CASE("a model's name is that of its folder, or of its file without .gguf") {
  const std::pair<const char*, const char*> names[] = {
      {"models/tales-llama", "tales-llama"},
      {"models/tales-llama/", "tales-llama"},
      {"models/tales-llama/.", "tales-llama"},
      {"models/../models/tales-llama", "tales-llama"},
      {"/a/Llama-3.1-8B", "Llama-3.1-8B"},  // not an extension
      {"/a/SmolLM2.Q4_1.gguf", "SmolLM2.Q4_1"},
      {"SmolLM2.Q4_1.gguf", "SmolLM2.Q4_1"},
      {"/a.gguf/b", "b"},
  };
  for (const auto& [path, name] : names) {
    INFO(path);
    CHECK(name_of_model(path) == name);
  }
}

}  // namespace kivi
