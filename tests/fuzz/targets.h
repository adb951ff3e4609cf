// SPDX-License-Identifier: Apache-2.0
// What is done with bytes that may be anything: a file is read as far as a server reads it before
// it serves, a request is carried to its reply. One function a kind, for the seeded mutations
// (mutations_test.cpp) and for libFuzzer (fuzz_main.cpp) alike. An error is a fine answer; a crash,
// a hang or a large allocation is not.
#pragma once

#include <array>
#include <random>
#include <string>
#include <string_view>

#include "tests/fuzz/mutators.h"

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

// Requests. Each target also checks what must hold of every input: the same bytes in pieces give
// the same result, a refusal blames the client, nothing is left behind.
bool read_http_head(std::string_view bytes);
bool read_chunked_body(std::string_view bytes);     // the first byte: the size of the pieces
bool read_http_connection(std::string_view bytes);  // the same; then what a client sends
bool read_json(std::string_view bytes);             // as each endpoint's body
bool read_grpc_message(std::string_view bytes);     // the first byte chooses the message
// The first byte chooses a JSON Schema, a regular expression or a grammar; the rest is its text.
bool read_grammar(std::string_view bytes);
// A model's text. The first byte chooses how it writes tool calls and reasoning.
bool read_answer(std::string_view bytes);

struct Target {
  std::string_view name;
  bool (*read)(std::string_view bytes);
  bool mutated_elsewhere = false;  // by a test that has bounds of its own
  std::string (*mutate)(std::string_view bytes, std::mt19937& random) = nullptr;  // mutators.h
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
    Target{"http_head", read_http_head},
    Target{"chunked_body", read_chunked_body},
    Target{"http_connection", read_http_connection},
    Target{"json", read_json, false, mutate_json},
    Target{"grpc_message", read_grpc_message, false, mutate_grpc_message},
    Target{"grammar", read_grammar},
    Target{"answer", read_answer},
};

}  // namespace kivi::fuzz
