// SPDX-License-Identifier: Apache-2.0
// tokenizer.json in the configuration of every family against Hugging Face's tokenizers
// (tests/data/text/families, family_goldens.json, made by make_family_goldens.py), and against
// itself.
#include <time.h>

#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <random>

#include "base/utf8.h"
#include "engine/text/text_normalizer.h"
#include "engine/text/tokenizer.h"
#include "tests/text/model_folder.h"
#include "tests/text/texts.h"

using namespace kivi;
using kivi::testing::ModelFolder;
using nlohmann::json;

namespace {

const std::string kData = KIVI_SOURCE_DIR "/tests/data/";

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  REQUIRE(file);
  return {std::istreambuf_iterator<char>(file), {}};
}

const json& goldens() {
  static const json file = json::parse(read_file(kData + "text/family_goldens.json"));
  return file;
}

std::vector<std::string> families() {
  std::vector<std::string> names;
  for (const auto& [name, golden] : goldens().items())
    if (golden.is_object()) names.push_back(name);
  return names;
}

std::unique_ptr<Tokenizer> load_family(const std::string& name) {
  ModelFolder folder;
  folder.write("tokenizer.json", read_file(kData + "text/families/" + name + ".json"));
  auto tokenizer = load_tokenizer(folder.path());
  if (!tokenizer.ok()) FAIL(tokenizer.error().message);
  return std::move(tokenizer).value();
}

// The texts of the script's LONG.
std::map<std::string, std::string> long_texts() {
  std::map<std::string, std::string> texts;
  std::string& letters = texts["letters"];
  for (int64_t i = 0; i < 100'000; ++i) letters += char(97 + (i * i + i / 7) % 26);
  texts["one letter"] = std::string(100'000, 'a');
  texts["spaces"] = std::string(5000, ' ') + "x";
  texts["newlines"] = std::string(5000, '\n');
  for (int i = 0; i < 4000; ++i) texts["cjk"] += "\u4f60\u597d\uff0c\u4e16\u754c\u3002";
  texts["tales"] = read_file(kData + "heldout_sample.txt");
  return texts;
}

json hashed(const std::vector<int32_t>& ids) {
  uint64_t value = 0xCBF29CE484222325;
  for (const int32_t id : ids) value = (value ^ uint64_t(id)) * 0x100000001B3;
  return {ids.size(), value};
}

// Of this thread: a busy machine must not slow the measurement.
double cpu_seconds() {
  timespec now = {};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return double(now.tv_sec) + double(now.tv_nsec) * 1e-9;
}

// What Hugging Face's tokenizers do not give back either: form C, or a space that they have put
// before the text.
std::string round_trip(const std::string& family, const std::string& text) {
  if (family == "qwen2") return to_nfc(text);
  // These put no space before a text that begins with one, and take it away all the same.
  if (family == "mistral-v0.3" || family == "metaspace-split")
    return text.starts_with(' ') ? text.substr(1) : text;
  if (family == "prefix-space" && !text.empty() && !text.starts_with(' ')) return ' ' + text;
  return text;
}

}  // namespace

TEST_CASE("every family's ids and text are those of Hugging Face's tokenizers") {
  REQUIRE(families().size() >= 10);
  for (const std::string& name : families()) {
    const auto tokenizer = load_family(name);
    for (const json& golden : goldens()[name]["cases"]) {
      const auto text = golden[0].get<std::string>();
      INFO(name << ": " << golden[0].dump());
      const auto ids = tokenizer->encode(text, true);
      CHECK(json(ids) == golden[1]);
      CHECK(json(tokenizer->decode(ids, true)) == golden[2]);
      const bool same = golden.size() == 3;  // with special tokens parsed, too
      const auto special = tokenizer->encode_with_special(text, true);
      CHECK(json(special) == golden[same ? 1 : 3]);
      CHECK(json(tokenizer->decode(special, true)) == golden[same ? 2 : 4]);
    }
  }
}

TEST_CASE("long texts, with and without a space, have the ids of Hugging Face's tokenizers") {
  const auto texts = long_texts();
  for (const std::string& name : families()) {
    const auto tokenizer = load_family(name);
    for (const auto& [key, expected] : goldens()[name]["long"].items()) {
      INFO(name << ": " << key);
      const auto ids = tokenizer->encode(texts.at(key), true);
      CHECK(hashed(ids) == expected);
      if (name != "flags") CHECK((tokenizer->decode(ids, true) == round_trip(name, texts.at(key))));
    }
  }
}

TEST_CASE("every family gives a text back, whatever its bytes") {
  std::mt19937 random(11);
  for (const std::string& name : families()) {
    if (name == "flags") continue;  // its added tokens take spaces along, as they are told to
    const auto tokenizer = load_family(name);
    for (const std::string& text : testing::awkward_texts()) {
      INFO(name << ": " << text);
      CHECK(tokenizer->decode(tokenizer->encode(text, true), true) == round_trip(name, text));
    }
    for (int round = 0; round < 500; ++round) {
      std::string bytes, valid;
      for (size_t n = random() % 40; n > 0; --n) bytes += char(random() % 256);
      Utf8Stream stream;
      stream.append(bytes, valid);
      stream.flush(valid);
      const auto ids = tokenizer->encode(bytes, true);
      REQUIRE(ids == tokenizer->encode(valid, true));
      REQUIRE(tokenizer->decode(ids, true) == round_trip(name, valid));
    }
  }
}

TEST_CASE("form C: what is composed already stays, what is not gets composed") {
  CHECK(to_nfc("plain na\u00EFve") == "plain na\u00EFve");
  CHECK(to_nfc("e\u0301") == "\u00E9");
  CHECK(to_nfc("A\u030A \u212B") == "\u00C5 \u00C5");
  CHECK(to_nfc("\u1100\u1161\u11A8") == "\uAC01");
  CHECK(to_nfc("a\u0323\u0307 a\u0307\u0323") == "\u1EA1\u0307 \u1EA1\u0307");
}

// Llama 3's configuration with a vocabulary as large as its own: most words of a text are a token.
std::unique_ptr<Tokenizer> llama3_with_words(const std::string& text) {
  constexpr size_t kTokens = 128'000;
  json file = json::parse(read_file(kData + "text/families/llama3.json"));
  json& vocab = file["model"]["vocab"];
  int32_t next = 1000;  // behind the added tokens
  const auto add = [&](const std::string& name) {
    if (vocab.size() < kTokens && !vocab.contains(name)) vocab[name] = next++;
  };
  for (size_t at = 0; at < text.size();) {
    size_t end = at;
    while (end < text.size() && std::isalpha(static_cast<unsigned char>(text[end]))) ++end;
    if (end > at + 1)
      add((at > 0 && text[at - 1] == ' ' ? "\u0120" : "") + text.substr(at, end - at));
    at = end + 1;
  }
  std::mt19937 random(1);
  while (vocab.size() < kTokens) {
    std::string word = random() % 2 ? "\u0120" : "";
    for (size_t n = 2 + random() % 8; n > 0; --n) word += char('a' + random() % 26);
    add(word);
  }
  ModelFolder folder;
  folder.write("tokenizer.json", file.dump());
  auto tokenizer = load_tokenizer(folder.path());
  if (!tokenizer.ok()) FAIL(tokenizer.error().message);
  return std::move(tokenizer).value();
}

// Run by name: build/tests/text_test "[.speed]".
TEST_CASE("encoding speed of a megabyte of tales", "[.speed]") {
  std::string text;
  while (text.size() < 1'000'000) text += read_file(kData + "heldout_sample.txt");
  const auto measure = [&](const std::string& name, const Tokenizer& tokenizer) {
    double best = 1e9;
    size_t tokens = 0;
    for (int i = 0; i < 7; ++i) {
      const double begin = cpu_seconds();
      tokens = tokenizer.encode(text, true).size();
      best = std::min(best, cpu_seconds() - begin);
    }
    std::printf("%-16s %6.1f MB/s  %zu tokens\n", name.c_str(), double(text.size()) / 1e6 / best,
                tokens);
    CHECK(tokens > 100'000);
  };
  for (const std::string& name : families()) measure(name, *load_family(name));
  measure("llama3, 128,000", *llama3_with_words(text));
  for (const char* model : {"tales-falcon", "tales-llama"}) {
    const auto tokenizer = load_tokenizer(KIVI_SOURCE_DIR "/models/" + std::string(model));
    REQUIRE(tokenizer.ok());
    measure(model, **tokenizer);
  }
}
