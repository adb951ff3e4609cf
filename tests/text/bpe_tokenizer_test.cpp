// SPDX-License-Identifier: Apache-2.0
// Byte-level BPE against Hugging Face's tokenizers, against the stupid version of itself, and with
// files that ask for what is not built.
#include "engine/text/bpe_tokenizer.h"

#include <catch2/catch.hpp>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <random>

#include "base/utf8.h"
#include "engine/text/bpe_merges.h"
#include "engine/text/pre_tokenizer.h"
#include "tests/text/model_folder.h"
#include "tests/text/texts.h"

using namespace kivi;
using kivi::testing::ModelFolder;
using kivi::testing::read_json;
using nlohmann::json;

namespace {

const std::string kFalcon = KIVI_SOURCE_DIR "/models/tales-falcon";

const json& falcon_file() {
  static const json file = read_json(kFalcon + "/tokenizer.json");
  return file;
}

// tales-falcon's tokenizer.json with parts of it replaced.
json with_parts(const json& parts) {
  json file = falcon_file();
  for (const auto& [key, part] : parts.items()) {
    (key == "ignore_merges" ? file["model"] : file)[key] = part;
  }
  return file;
}

Result<std::unique_ptr<Tokenizer>> load_file(const json& file) {
  ModelFolder folder;
  folder.write("tokenizer.json", file.dump());
  return load_tokenizer(folder.path());
}

std::unique_ptr<Tokenizer> load(const json& file) {
  auto tokenizer = load_file(file);
  if (!tokenizer.ok()) FAIL(tokenizer.error().message);
  return std::move(tokenizer).value();
}

const Tokenizer& falcon() {
  static const auto tokenizer = load_tokenizer(kFalcon);
  if (!tokenizer.ok()) FAIL(tokenizer.error().message);
  return **tokenizer;
}

}  // namespace

TEST_CASE("tales-falcon's prompt gets the ids of its golden data") {
  const auto golden = read_json(kFalcon + "/golden.json");
  const std::string prompt = "Once upon a time there was a king who had three daughters";
  CHECK(json(falcon().encode(prompt, true)) == golden["prompt_ids"]);
  CHECK(falcon().decode(golden["prompt_ids"].get<std::vector<int32_t>>(), true) == prompt);
  CHECK(falcon().vocab_size() == 4096);
  CHECK(falcon().eos_id() == 0);
  CHECK(!falcon().bos_id());
  CHECK(falcon().kind() == "byte-level bpe");
}

TEST_CASE("ids and text equal those of Hugging Face's tokenizers, for the parts of many models") {
  const json goldens = read_json(KIVI_SOURCE_DIR "/tests/data/text/bpe_goldens.json");
  REQUIRE(goldens["variants"].size() > 8);
  for (const auto& [name, variant] : goldens["variants"].items()) {
    const auto tokenizer = load(with_parts(variant["parts"]));
    for (const json& golden : variant["cases"]) {
      INFO(name << ": " << golden["text"].dump());
      const auto ids = tokenizer->encode(golden["text"].get<std::string>(), true);
      CHECK(json(ids) == golden["ids"]);
      CHECK(json(tokenizer->decode(ids, true)) == golden["decoded"]);
    }
  }
}

TEST_CASE("byte-level BPE: decode(encode(text)) is the text, whatever the text and however long") {
  std::vector<std::string> texts = testing::awkward_texts();
  std::string words, letters;
  while (words.size() < 1'000'000) words += "There was a king who had three daughters. ";
  for (uint32_t x = 1; letters.size() < 100'000; x = x * 1664525 + 1013904223) {
    letters += char('a' + (x >> 16) % 26);
  }
  texts.insert(texts.end(), {words, letters, std::string(100'000, 'a'), std::string(100'000, ' '),
                             std::string(100'000, '\0'), std::string(100'000, '\n') + "x"});
  for (const std::string& text : texts) {
    INFO(text.substr(0, 40));
    CHECK(falcon().decode(falcon().encode(text, true), true) == text);
  }
  std::mt19937 random(4);
  for (int round = 0; round < 2000; ++round) {
    std::string bytes, valid;
    for (size_t n = random() % 40; n > 0; --n) bytes += char(random() % 256);
    Utf8Stream stream;
    stream.append(bytes, valid);
    stream.flush(valid);
    REQUIRE(falcon().decode(falcon().encode(bytes, true), true) == valid);
  }
}

TEST_CASE("byte-level BPE: a text that spells a special token stays text") {
  const auto ids = falcon().encode("a<|endoftext|>b", true);
  for (int32_t id : ids) CHECK(id != 0);
  CHECK(falcon().decode(ids, true) == "a<|endoftext|>b");
  CHECK(falcon().token_bytes(0, true).empty());
  CHECK(falcon().token_bytes(0, false) == "<|endoftext|>");
}

TEST_CASE("the bytes of the longest token are known only where no text is lost") {
  CHECK(falcon().longest_token_bytes() > 8);
  json few = falcon_file()["model"];  // only the bytes a and b have tokens
  few["vocab"] = {{"a", 0}, {"b", 1}, {"ab", 2}};
  few["merges"] = {"a b"};
  const auto tokenizer = load(with_parts({{"model", few}, {"added_tokens", json::array()}}));
  CHECK(tokenizer->encode("ab c", false) == std::vector<int32_t>{2});
  CHECK(tokenizer->longest_token_bytes() == 0);
}

TEST_CASE("a normalizer's prefix is put before the text, and replacements follow") {
  const json steps = {{{"type", "Prepend"}, {"prepend", "x"}},
                      {{"type", "Replace"}, {"pattern", {{"String", "b"}}}, {"content", "c"}}};
  const auto tokenizer =
      load(with_parts({{"normalizer", {{"type", "Sequence"}, {"normalizers", steps}}}}));
  CHECK(tokenizer->encode("abba", false) == falcon().encode("xacca", false));
  CHECK(tokenizer->encode("", false).empty());
}

TEST_CASE("merging gives what merging the first-learned leftmost pair over and over gives") {
  std::mt19937 random(9);
  for (int round = 0; round < 3000; ++round) {
    BpeMerges merges;
    std::map<std::pair<int32_t, int32_t>, std::pair<int, int32_t>> known;  // -> rank, merged
    int32_t tokens = 3;
    for (int i = 0; i < 12; ++i) {
      const auto left = int32_t(random() % uint32_t(tokens));
      const auto right = int32_t(random() % uint32_t(tokens));
      if (!known.try_emplace({left, right}, i, tokens).second) continue;
      merges.add(left, right, tokens++);
    }
    std::vector<int32_t> symbols;
    for (size_t n = random() % 30; n > 0; --n) symbols.push_back(int32_t(random() % 3));
    BpeMerges::Scratch scratch;
    std::vector<int32_t> out;
    merges.merge(symbols, scratch, out);

    for (;;) {
      int best = INT32_MAX;
      size_t where = 0;
      for (size_t i = 0; i + 1 < symbols.size(); ++i) {
        const auto it = known.find({symbols[i], symbols[i + 1]});
        if (it != known.end() && it->second.first < best) best = it->second.first, where = i;
      }
      if (best == INT32_MAX) break;
      symbols[where] = known.at({symbols[where], symbols[where + 1]}).second;
      symbols.erase(symbols.begin() + int64_t(where) + 1);
    }
    REQUIRE(out == symbols);
  }
}

TEST_CASE("the byte alphabet writes every byte as a character of its own, and back") {
  const ByteAlphabet alphabet;
  std::string all;
  for (int byte = 0; byte < 256; ++byte) {
    const auto c = alphabet.character(static_cast<unsigned char>(byte));
    CHECK(utf8_length(c) == 1);
    CHECK(is_valid_utf8(c));
    CHECK(alphabet.decode(c) == std::string(1, char(byte)));
    all += c;
  }
  CHECK(alphabet.character(' ') == "\u0120");
  CHECK(alphabet.character('\n') == "\u010A");
  CHECK(alphabet.decode(all)->size() == 256);
  CHECK(!alphabet.decode("a b"));
  CHECK(!alphabet.decode("\u4F60"));
}

TEST_CASE("what a tokenizer.json asks for and is not built is refused by name") {
  using Catch::Contains;
  const auto refused = [&](const json& parts, ErrorCode code = ErrorCode::unsupported) {
    const auto tokenizer = load_file(with_parts(parts));
    REQUIRE(!tokenizer.ok());
    CHECK(tokenizer.error().code == code);
    CHECK(tokenizer.error().field == "tokenizer");
    return tokenizer.error().message;
  };
  const json bytes = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
  const auto sequence = [&](const json& part) {
    return json{{"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", {part, bytes}}}}};
  };
  CHECK_THAT(refused({{"normalizer", {{"type", "NFKC"}}}}), Contains("normalizer NFKC"));
  CHECK_THAT(refused({{"normalizer",
                       {{"type", "Replace"}, {"pattern", {{"Regex", "a"}}}, {"content", "b"}}}}),
             Contains("normalizer Replace"));
  CHECK_THAT(refused({{"normalizer", {{"type", "NFC"}, {"extra", 1}}}}),
             Contains("normalizer NFC with extra"));
  CHECK_THAT(refused({{"surprise", 1}}), Contains("surprise"));
  CHECK_THAT(
      refused({{"decoder", {{"type", "Strip"}, {"content", " "}, {"start", 2}, {"stop", 0}}}}),
      Contains("decoder Strip") && Contains("other than of one space at the start"));
  CHECK_THAT(refused({{"decoder", {{"type", "Fuse"}, {"content", "x"}}}}), !Contains("one space"));
  CHECK_THAT(refused({{"decoder", nullptr}}), Contains("decoder null"));
  CHECK_THAT(refused({{"decoder", {{"type", "WordPiece"}}}}), Contains("decoder WordPiece"));
  CHECK_THAT(refused({{"pre_tokenizer", {{"type", "Metaspace"}, {"replacement", "_"}}}}),
             Contains("Metaspace"));
  CHECK_THAT(refused({{"pre_tokenizer", {{"type", "BertPreTokenizer"}}}}),
             Contains("BertPreTokenizer"));
  CHECK_THAT(refused({{"pre_tokenizer", nullptr}}), Contains("null"));
  CHECK_THAT(refused({{"pre_tokenizer", {{"type", "Digits"}}}}), Contains("ByteLevel"));
  CHECK_THAT(refused(sequence(
                 {{"type", "Split"}, {"pattern", {{"Regex", "(a"}}}, {"behavior", "Isolated"}})),
             Contains("(a"));
  CHECK_THAT(refused(sequence(
                 {{"type", "Split"}, {"pattern", {{"Regex", "\\h"}}}, {"behavior", "Isolated"}})),
             Contains("\\h"));
  CHECK_THAT(refused(sequence(
                 {{"type", "Split"}, {"pattern", {{"Regex", "a"}}}, {"behavior", "Sideways"}})),
             Contains("Sideways"));
  CHECK_THAT(refused({{"post_processor", {{"type", "RobertaProcessing"}}}}),
             Contains("RobertaProcessing"));
  CHECK_THAT(refused({{"post_processor", {{"type", "Sequence"}}}}), Contains("Sequence"));
  CHECK_THAT(refused({{"added_tokens", {{{"id", 9}, {"content", "x"}, {"ghost", true}}}}}),
             Contains("ghost"));
  const auto model = [&](const char* key, const json& value) {
    json changed = falcon_file()["model"];
    changed[key] = value;
    return json{{"model", changed}};
  };
  CHECK_THAT(refused(model("type", "Unigram")), Contains("Unigram"));
  CHECK_THAT(refused(model("byte_fallback", true)), Contains("byte_fallback"));
  CHECK_THAT(refused(model("dropout", 0.1)), Contains("dropout"));
  CHECK_THAT(refused(model("end_of_word_suffix", "</w>")), Contains("</w>"));
  CHECK_THAT(refused(model("vocab", {{"a", 0}}), ErrorCode::invalid), Contains("model.merges[0]"));
  CHECK_THAT(refused(model("vocab", 7), ErrorCode::invalid), Contains("vocab"));
  CHECK_THAT(refused(model("merges", {"no such merge"}), ErrorCode::invalid),
             Contains("merges[0]"));
  // One of the two tokens, or their join, is unknown.
  for (const char* merge : {"ab c", "a bc", "b c"}) {
    json changed = falcon_file()["model"];
    changed["vocab"] = {{"a", 0}, {"b", 1}, {"c", 2}, {"abc", 3}};
    changed["merges"] = {merge};
    CHECK_THAT(refused({{"model", changed}}, ErrorCode::invalid), Contains(merge));
  }
  ModelFolder folder;
  folder.write("tokenizer.json", "{\"model\":");
  const auto broken = load_tokenizer(folder.path());
  REQUIRE(!broken.ok());
  CHECK_THAT(broken.error().message, Contains("tokenizer.json") && Contains("JSON"));
}
