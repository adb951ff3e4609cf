// SPDX-License-Identifier: Apache-2.0
// What is done with the bytes of a file that may be anything: read as far as a server would read it
// before it serves. One function a kind of file, for the seeded mutations (mutations_test.cpp) and
// for libFuzzer (fuzz_main.cpp) alike. An error is a fine answer; a crash, a hang or a large
// allocation is not.
#pragma once

#include <array>
#include <string>
#include <string_view>

namespace kivi::fuzz {

// Each says whether it took the file for a good one, and leaves nothing behind but a folder of the
// process's own under the temporary one.
bool read_safetensors(std::string_view bytes);
bool read_index(std::string_view bytes);
bool read_config(std::string_view bytes);
bool read_tokenizer_json(std::string_view bytes);
bool read_tokenizer_model(std::string_view bytes);
bool read_gguf(std::string_view bytes);
bool read_chat_template(std::string_view bytes);  // and renders a chat with it

struct Target {
  std::string_view name;
  bool (*read)(std::string_view bytes);
  bool mutated_elsewhere = false;  // by a test that has bounds of its own
};
inline constexpr std::array kTargets = {
    Target{"safetensors", read_safetensors},
    Target{"index", read_index},
    Target{"config", read_config},
    Target{"tokenizer_json", read_tokenizer_json},
    Target{"tokenizer_model", read_tokenizer_model},
    Target{"gguf", read_gguf, true},  // tests/model/gguf_mutation_test.cpp
    Target{"chat_template", read_chat_template,
           true},  // tests/serving/chat_template_limits_test.cpp
};

}  // namespace kivi::fuzz
