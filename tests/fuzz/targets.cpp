// SPDX-License-Identifier: Apache-2.0
#include "tests/fuzz/targets.h"

#include <nlohmann/json.hpp>

#include "base/json_file.h"
#include "engine/model/families/registry.h"
#include "engine/model/files/safetensors.h"
#include "engine/model/model_config.h"
#include "engine/model/rope_scaling.h"
#include "engine/model/weights.h"
#include "engine/serving/chat_template.h"
#include "engine/text/bpe_tokenizer.h"
#include "engine/text/sentencepiece_tokenizer.h"
#include "tests/model/small_gguf.h"
#include "tests/model/temporary_folder.h"

namespace kivi::fuzz {

namespace {

// Looked at, so that reading outside of the file is seen.
volatile unsigned sink = 0;
void look_at(unsigned value) { sink = sink + value; }

void look_at(const TensorMap& tensors) {
  for (const auto& [name, tensor] : tensors) {
    look_at(unsigned(name.size()));
    if (tensor.bytes == 0) continue;
    look_at(unsigned(tensor.data[0]));
    look_at(unsigned(tensor.data[tensor.bytes - 1]));
  }
}

const TemporaryFolder& folder() {
  static const TemporaryFolder folder;
  return folder;
}

void use(const Tokenizer& tokenizer) {
  const std::string texts[] = {"", " a king ab  <s>x</s>\n", "\u00e9\u4f60 e\u0301\xff 12",
                               std::string(200, 'a')};
  for (const std::string& text : texts) {
    const auto ids = tokenizer.encode_with_special(text, true);
    look_at(unsigned(tokenizer.decode(ids, false).size()));
    look_at(unsigned(tokenizer.decode(tokenizer.encode(text, false), true).size()));
  }
  for (const int32_t id : {-1, 0, 1, 300, tokenizer.vocab_size()})
    look_at(unsigned(tokenizer.token_name(id).size() + tokenizer.token_bytes(id, true).size()));
}

}  // namespace

bool read_safetensors(std::string_view bytes) {
  const auto* data = reinterpret_cast<const std::byte*>(bytes.data());
  const auto tensors = parse_safetensors(data, bytes.size(), "file");
  if (tensors.ok()) look_at(*tensors);
  return tensors.ok();
}

bool read_index(std::string_view bytes) {
  static const bool written = [] {
    folder().write(
        "part-1.safetensors",
        safetensors_bytes(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8));
    folder().write(
        "part-2.safetensors",
        safetensors_bytes(R"({"b":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}})", 4));
    return true;
  }();
  look_at(unsigned(written));
  folder().write("model.safetensors.index.json", std::string(bytes));
  const auto checkpoint = open_safetensors(folder().path());
  if (checkpoint.ok()) look_at(checkpoint->tensors());
  return checkpoint.ok();
}

bool read_config(std::string_view bytes) {
  folder().write("config.json", std::string(bytes));
  const auto model = read_model_config(folder().path());
  if (!model.ok()) return false;
  const DecoderSpec& spec = model->spec;
  look_at(unsigned(inverse_frequencies(spec.rope).size()));
  look_at(unsigned(parameter_count(spec) + weight_bytes(spec, model->dtype)));
  look_at(unsigned(model->family->names(spec).qkv.size()));
  return true;
}

bool read_tokenizer_json(std::string_view bytes) {
  const auto document = parse_json(bytes, "file");
  if (!document.ok()) return false;
  const auto tokenizer = make_bpe_tokenizer("file", *document, {});
  if (tokenizer.ok()) use(**tokenizer);
  return tokenizer.ok();
}

bool read_tokenizer_model(std::string_view bytes) {
  const auto tokenizer = make_sentencepiece_tokenizer("file", std::string(bytes), {});
  if (tokenizer.ok()) use(**tokenizer);
  return tokenizer.ok();
}

bool read_gguf(std::string_view bytes) {
  static const auto backend = make_cpu_backend(1);
  return read_gguf_file(std::string(bytes), *backend) == 2;
}

bool read_chat_template(std::string_view bytes) {
  static const auto chat = nlohmann::ordered_json::parse(R"({
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi \u00e9"},
                 {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function":
                  {"name": "f", "arguments": {"x": [1, 2.5, null, true]}}}]},
                 {"role": "user", "content": [{"type": "text", "text": "And?"}]}],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": true})");
  const auto parsed = ChatTemplate::parse({std::string(bytes), "file"});
  if (!parsed.ok()) return false;
  const auto text = parsed->render(chat, 0);
  if (text.ok()) look_at(unsigned(text->size()));
  return text.ok();
}

}  // namespace kivi::fuzz
