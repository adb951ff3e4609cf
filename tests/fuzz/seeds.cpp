// SPDX-License-Identifier: Apache-2.0
#include "tests/fuzz/seeds.h"

#include <filesystem>
#include <fstream>
#include <iterator>

#include "tests/golden/golden_models.h"
#include "tests/model/small_gguf.h"

namespace kivi::fuzz {

namespace {

using nlohmann::json;

std::string source_file(const std::string& path) {
  std::ifstream file(std::string(KIVI_SOURCE_DIR) + "/" + path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// Of the SentencePiece kind, with every part that is read.
std::string spaces_tokenizer() {
  json vocab = {{"<unk>", 0}, {"<s>", 1}, {"</s>", 2}, {"<0x0A>", 3}, {"<0xC3>", 4}, {"<0xA9>", 5}};
  for (const char* name :
       {"\u2581", "a", "b", "k", "i", "n", "g", "ki", "ng", "king", "\u2581king"})
    vocab[name] = vocab.size();
  const auto token = [](int id, const char* content, bool special) {
    return json{{"id", id},
                {"content", content},
                {"special", special},
                {"lstrip", special},
                {"rstrip", !special},
                {"normalized", !special},
                {"single_word", id == 17}};
  };
  return json{
      {"version", "1.0"},
      {"added_tokens", {token(0, "<unk>", true), token(1, "<s>", true), token(17, "<x>", false)}},
      {"normalizer",
       {{"type", "Sequence"},
        {"normalizers",
         {{{"type", "NFC"}},
          {{"type", "Prepend"}, {"prepend", "\u2581"}},
          {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "\u2581"}}}}}},
      {"pre_tokenizer",
       {{"type", "Metaspace"},
        {"replacement", "\u2581"},
        {"prepend_scheme", "first"},
        {"split", true}}},
      {"post_processor",
       {{"type", "TemplateProcessing"},
        {"single", {{{"SpecialToken", {{"id", "<s>"}}}}, {{"Sequence", {{"id", "A"}}}}}}}},
      {"decoder",
       {{"type", "Sequence"},
        {"decoders",
         {{{"type", "Replace"}, {"pattern", {{"String", "\u2581"}}}, {"content", " "}},
          {{"type", "ByteFallback"}},
          {{"type", "Fuse"}},
          {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}}}}}},
      {"model",
       {{"type", "BPE"},
        {"unk_token", "<unk>"},
        {"fuse_unk", true},
        {"byte_fallback", true},
        {"vocab", vocab},
        {"merges", {"k i", "n g", "ki ng", "\u2581 king"}}}}}
      .dump();
}

std::string byte_level_tokenizer() {
  json file = bytes_tokenizer();
  file["model"]["vocab"]["ki"] = 256;
  file["model"]["merges"] = {"k i"};
  file["added_tokens"] = {{{"id", 257}, {"content", "<s>"}, {"special", true}}};
  file["pre_tokenizer"] = {{"type", "Sequence"},
                           {"pretokenizers",
                            {{{"type", "Punctuation"}, {"behavior", "Contiguous"}},
                             {{"type", "Digits"}, {"individual_digits", true}},
                             {{"type", "Split"},
                              {"pattern", {{"Regex", "\\p{L}+|\\s+(?!\\S)"}}},
                              {"behavior", "Isolated"}},
                             {{"type", "ByteLevel"}, {"add_prefix_space", true}}}}};
  return file.dump();
}

std::vector<std::string> chat_templates() {
  std::vector<std::string> texts;
  for (const auto& file : std::filesystem::directory_iterator(std::string(KIVI_SOURCE_DIR) +
                                                              "/tests/data/chat/templates"))
    texts.push_back(source_file("tests/data/chat/templates/" + file.path().filename().string()));
  return texts;
}

std::string yarn_config() {
  json config = read_golden_model("qwen2-yarn-window")["config"];
  config["eos_token_id"] = {1, 2};
  return config.dump();
}

}  // namespace

std::vector<std::string> seeds_of(std::string_view target) {
  if (auto requests = request_seeds_of(target); !requests.empty()) return requests;
  if (target == "safetensors")
    return {safetensors_bytes(
        R"({"__metadata__":{"format":"pt"},"a.weight":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},)"
        R"("b":{"dtype":"F32","shape":[],"data_offsets":[12,16]}})",
        16)};
  if (target == "index")
    return {
        R"({"metadata":{"total_size":12},"weight_map":{"a":"part-1.safetensors","b":"part-2.safetensors"}})"};
  if (target == "config")
    return {source_file("models/tales-llama/config.json"),
            source_file("models/tales-falcon/config.json"),
            read_golden_model("llama3.1-gqa2")["config"].dump(), yarn_config()};
  if (target == "tokenizer_json") return {spaces_tokenizer(), byte_level_tokenizer()};
  if (target == "gguf") return {small_gguf_bpe().bytes(), small_gguf_sentencepiece().bytes()};
  if (target == "chat_template") return chat_templates();
  return {source_file("tests/data/text/small_unigram.model"),
          source_file("tests/data/text/small_spaces.model")};
}

}  // namespace kivi::fuzz
