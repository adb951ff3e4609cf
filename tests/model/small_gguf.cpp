// SPDX-License-Identifier: Apache-2.0
#include "tests/model/small_gguf.h"

#include <cstdint>
#include <string>
#include <vector>

#include "engine/model/files/gguf.h"
#include "engine/model/files/gguf_model.h"
#include "engine/model/weights.h"
#include "engine/text/gguf_tokenizer.h"
#include "engine/text/pre_tokenizer.h"

namespace kivi {

namespace {

constexpr uint64_t kHidden = 32, kRows = 16;

// A whole Llama of one layer with heads of 16: small, so that most mutations hit what is checked.
GgufWriter small_model() {
  GgufWriter w;
  w.string("general.architecture", "llama");
  w.u32("llama.block_count", 1);
  w.u32("llama.context_length", 64);
  w.u32("llama.embedding_length", kHidden);
  w.u32("llama.feed_forward_length", kHidden);
  w.u32("llama.attention.head_count", 2);
  w.u32("llama.attention.head_count_kv", 1);
  w.f32("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  w.f32("llama.rope.freq_base", 10000);
  w.u32("llama.rope.dimension_count", kRows);
  w.u32("tokenizer.ggml.bos_token_id", 1);
  w.u32("tokenizer.ggml.eos_token_id", 2);
  w.u32("tokenizer.ggml.unknown_token_id", 0);
  w.string("tokenizer.chat_template", "{{ messages[0]['content'] }}");
  return w;
}

void add_weights(GgufWriter& w, uint64_t vocab) {
  const auto matrix = [&](const std::string& name, uint64_t rows) {
    w.tensor(name + ".weight", 2, {rows, kHidden}, std::string(rows * 18, '\7'));  // Q4_0
  };
  const auto norm = [&](const std::string& name) {
    w.tensor(name + ".weight", 0, {kHidden}, std::string(kHidden * 4, '\0'));
  };
  matrix("token_embd", vocab);
  matrix("blk.0.attn_q", kHidden);
  matrix("blk.0.attn_k", kRows);
  matrix("blk.0.attn_v", kRows);
  matrix("blk.0.attn_output", kHidden);
  matrix("blk.0.ffn_gate", kHidden);
  matrix("blk.0.ffn_up", kHidden);
  matrix("blk.0.ffn_down", kHidden);
  norm("blk.0.attn_norm");
  norm("blk.0.ffn_norm");
  norm("output_norm");
  w.tensor("rope_freqs.weight", 0, {kRows / 2}, std::string(kRows * 2, '\x40'));
}

}  // namespace

GgufWriter small_gguf_bpe() {
  GgufWriter w = small_model();
  const ByteAlphabet alphabet;
  std::vector<std::string> tokens = {"<unk>", "<s>", "</s>"};
  std::vector<int32_t> types = {3, 3, 3};
  for (int byte = 0; byte < 256; ++byte)
    tokens.emplace_back(alphabet.character(static_cast<unsigned char>(byte)));
  tokens.insert(tokens.end(), {"he", "ll", "hell", "hello", "<tool>"});
  types.resize(tokens.size(), 1);
  types.back() = 4;
  w.string("tokenizer.ggml.model", "gpt2");
  w.string("tokenizer.ggml.pre", "gpt-2");
  w.strings("tokenizer.ggml.tokens", tokens);
  w.i32s("tokenizer.ggml.token_type", types);
  w.strings("tokenizer.ggml.merges", {"h e", "l l", "he ll", "hell o"});
  add_weights(w, tokens.size());
  return w;
}

GgufWriter small_gguf_sentencepiece() {
  GgufWriter w = small_model();
  std::vector<std::string> tokens = {"<unk>", "<s>", "</s>"};
  std::vector<int32_t> types = {2, 3, 3};
  for (int byte = 0; byte < 256; ++byte) {
    constexpr const char* kDigits = "0123456789ABCDEF";
    tokens.push_back(std::string("<0x") + kDigits[byte / 16] + kDigits[byte % 16] + ">");
    types.push_back(6);
  }
  tokens.insert(tokens.end(), {"\xE2\x96\x81", "h", "e", "l", "o", "he", "ll"});
  types.resize(tokens.size(), 1);
  std::vector<float> scores;
  for (size_t i = 0; i < tokens.size(); ++i) scores.push_back(-float(i));
  w.string("tokenizer.ggml.model", "llama");
  w.strings("tokenizer.ggml.tokens", tokens);
  w.i32s("tokenizer.ggml.token_type", types);
  w.f32s("tokenizer.ggml.scores", scores);
  add_weights(w, tokens.size());
  return w;
}

int read_gguf_file(const std::string& bytes, Backend& backend) {
  const auto header =
      GgufHeader::parse(reinterpret_cast<const std::byte*>(bytes.data()), bytes.size(), "x.gguf");
  if (!header.ok()) return 0;
  const auto tokenizer = make_gguf_tokenizer(*header);
  if (tokenizer.ok()) {
    const auto ids = (*tokenizer)->encode("hello <tool> \xF0\x9F\x98\x80 1984\n", true);
    (*tokenizer)->decode(ids, false);
  }
  const auto model = read_gguf_config(*header);
  if (!model.ok()) return 1;
  TensorMap tensors = header->tensors();
  tensors.erase("rope_freqs.weight");
  const Checkpoint checkpoint("x.gguf", {}, std::move(tensors));
  // In blocks and dequantized.
  const auto blocks =
      load_weights(backend, model->spec, model->names, checkpoint, DType::f32, {}, model->formats);
  const auto weights = load_weights(backend, model->spec, model->names, checkpoint, DType::f32, {});
  return weights.ok() && blocks.ok() && tokenizer.ok() ? 2 : 1;
}

}  // namespace kivi
