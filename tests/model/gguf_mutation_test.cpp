// 10,000 broken GGUF files, all the way from the bytes to the weights: none crashes, hangs, leads
// out of the file, or makes us allocate more than a bound that its size gives.
#include <fmt/format.h>
#include <malloc.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <cstdlib>
#include <cstring>
#include <new>
#include <random>

#include "engine/gguf.h"
#include "engine/gguf_model.h"
#include "engine/gguf_tokenizer.h"
#include "engine/pre_tokenizer.h"
#include "engine/weights.h"
#include "tests/model/gguf_writer.h"

namespace {

// Bytes from operator new that are in use, and the most that there were.
std::atomic<int64_t> in_use{0}, most{0};

}  // namespace

// These stand in for the library's in the whole program. The nothrow form too: std::stable_sort's
// buffer comes from it and goes back through the plain delete, which AddressSanitizer, with a
// nothrow form of its own, takes for a mismatch.
void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  void* memory = std::malloc(bytes);
  if (memory == nullptr) return nullptr;
  const int64_t now = in_use += int64_t(malloc_usable_size(memory));
  if (now > most) most = now;
  return memory;
}
void* operator new(size_t bytes) {
  void* memory = operator new(bytes, std::nothrow);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void operator delete(void* memory) noexcept {
  if (memory != nullptr) in_use -= int64_t(malloc_usable_size(memory));
  std::free(memory);
}
void operator delete(void* memory, size_t) noexcept { operator delete(memory); }

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

GgufWriter with_bpe() {
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

GgufWriter with_sentencepiece() {
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

// Reads all that there is. How far it came: 0 not a file, 1 not a model, 2 a model.
int read_all(const std::string& bytes, Backend& backend) {
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
  const auto weights = load_weights(backend, model->spec, model->names, checkpoint, DType::f32, {});
  return weights.ok() && tokenizer.ok() ? 2 : 1;
}

// Bytes, lengths and whole stretches are changed, four times out of five before the tensors' bytes.
std::string mutated(std::string bytes, size_t header_bytes, std::mt19937& random) {
  for (unsigned n = 1 + random() % 3; n > 0; --n) {
    const size_t room = random() % 5 == 0 ? bytes.size() : std::min(header_bytes, bytes.size());
    const size_t at = random() % room;
    const size_t length = std::min<size_t>(1 + random() % 24, bytes.size() - at);
    constexpr uint64_t kNumbers[] = {
        0, 1, 7, 255, 65536, INT32_MAX, 1u << 31, UINT32_MAX, INT64_MAX, 1ull << 63, UINT64_MAX};
    const uint64_t number = kNumbers[random() % std::size(kNumbers)];
    switch (random() % 6) {
      case 0:
        bytes[at] = char(bytes[at] ^ 1 << random() % 8);
        break;
      case 1:
        bytes[at] = char(random());
        break;
      case 2:
        std::memcpy(&bytes[at], &number, std::min<size_t>({length, 4 + random() % 5, 8}));
        break;
      case 3:
        bytes.erase(at, length);
        break;
      case 4:
        bytes.insert(at, bytes.substr(random() % room, length));
        break;
      default:
        if (random() % 4 == 0) bytes.resize(at);
    }
    if (bytes.empty()) bytes = "G";
  }
  return bytes;
}

}  // namespace

TEST_CASE("10,000 mutated GGUF files never crash, hang or allocate beyond 1 MiB and 64 n bytes") {
  const bool bpe = GENERATE(true, false);
  const unsigned seed = bpe ? 20261124 : 20261125;
  CAPTURE(seed);
  std::mt19937 random(seed);
  const GgufWriter writer = bpe ? with_bpe() : with_sentencepiece();
  const std::string good = writer.bytes();
  const auto backend = make_cpu_backend(1);
  REQUIRE(read_all(good, *backend) == 2);
  int reached[3] = {};
  for (int i = 0; i < 5000; ++i) {
    const std::string bytes = mutated(good, writer.header_bytes(), random);
    const int64_t before = in_use;
    most = before;
    ++reached[read_all(bytes, *backend)];
    CAPTURE(i, bytes.size());
    REQUIRE(most - before < (1 << 20) + 64 * int64_t(bytes.size()));
    REQUIRE(in_use - before < 4096);  // nothing stays (the library's caches aside)
  }
  // The mutations reach every stage.
  CHECK(reached[0] > 500);
  CHECK(reached[1] > 500);
  CHECK(reached[2] > 100);
}

TEST_CASE("Parsing a GGUF file allocates at most 16 n bytes and 64 KiB") {
  GgufWriter many;  // as many keys and tensors as its size can hold
  for (int i = 0; i < 20'000; ++i) many.pair(fmt::format("{:x}", i), 0, "x");
  for (int i = 0; i < 20'000; ++i) many.tensor_at(fmt::format("{:x}", i), 0, {1}, 0);
  const std::string bytes = many.bytes() + std::string(32, '\0');
  const int64_t before = in_use;
  most = before;
  const auto header =
      GgufHeader::parse(reinterpret_cast<const std::byte*>(bytes.data()), bytes.size(), "x.gguf");
  REQUIRE(header.ok());
  CHECK(header->tensors().size() == 20'000);
  CHECK(most - before < (64 << 10) + 16 * int64_t(bytes.size()));
}

}  // namespace kivi
