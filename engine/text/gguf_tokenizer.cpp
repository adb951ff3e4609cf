// SPDX-License-Identifier: Apache-2.0
#include "engine/text/gguf_tokenizer.h"

#include <fmt/format.h>

#include <array>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/text/bpe_tokenizer.h"
#include "engine/text/sentencepiece_tokenizer.h"
#include "engine/text/tokenizer_config.h"

namespace kivi {

using nlohmann::json;

namespace {

// tokenizer.ggml.token_type; the numbers are SentencePiece's.
enum TokenType {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};

// Everything of the metadata, checked to fit together.
struct GgufVocabulary {
  std::string model, pre;
  std::vector<std::string> tokens;
  std::vector<int64_t> types;  // as many as tokens
  std::vector<float> scores;   // SentencePiece: as many as tokens
  std::vector<std::string> merges;
  std::optional<int64_t> bos, eos, unknown, padding;  // ids, below the number of tokens
  std::optional<bool> add_bos, add_eos, add_space_prefix, remove_extra_whitespaces;

  const std::string* name_of(const std::optional<int64_t>& id) const {
    return id ? &tokens[size_t(*id)] : nullptr;
  }
};

Status read_id(const GgufHeader& header, const char* name, size_t count,
               std::optional<int64_t>& id) {
  const std::string key = fmt::format("tokenizer.ggml.{}_token_id", name);
  KIVI_ASSIGN_OR_RETURN(id, header.integer(key));
  if (id && (*id < 0 || *id >= int64_t(count)))
    return header.invalid(key, fmt::format("is {}, must be below the {} tokens", *id, count));
  return ok_status();
}

// An array of `count` entries, or nothing.
template <class T>
Status read_list(const GgufHeader& header, const char* key, size_t count,
                 Result<std::optional<std::vector<T>>> list, std::vector<T>& out) {
  if (!list.ok()) return list.error();
  if (!*list) return ok_status();
  if ((*list)->size() != count)
    return header.invalid(key, fmt::format("has {} entries, must have {}, one for each token",
                                           (*list)->size(), count));
  out = std::move(**list);
  return ok_status();
}

Result<GgufVocabulary> read_vocabulary(const GgufHeader& header) {
  GgufVocabulary v;
  KIVI_ASSIGN_OR_RETURN(const auto model, header.string("tokenizer.ggml.model"));
  KIVI_ASSIGN_OR_RETURN(auto tokens, header.strings("tokenizer.ggml.tokens"));
  if (!model || !tokens)
    return Error{ErrorCode::not_found,
                 fmt::format("{}: no tokenizer (tokenizer.ggml.model and tokenizer.ggml.tokens)",
                             header.file()),
                 "tokenizer"};
  v.model = *model;
  v.tokens = std::move(*tokens);
  const size_t count = v.tokens.size();
  constexpr const char* kTypes = "tokenizer.ggml.token_type";
  KIVI_RETURN_IF_ERROR(read_list(header, kTypes, count, header.integers(kTypes), v.types));
  if (v.types.empty()) v.types.assign(count, kNormal);
  for (const int64_t type : v.types)
    if (type < kNormal || type > kByte)
      return header.invalid(kTypes, fmt::format("holds {}, must be 1 to 6", type));
  constexpr const char* kScores = "tokenizer.ggml.scores";
  KIVI_RETURN_IF_ERROR(read_list(header, kScores, count, header.floats(kScores), v.scores));
  KIVI_ASSIGN_OR_RETURN(auto merges, header.strings("tokenizer.ggml.merges"));
  if (merges) v.merges = std::move(*merges);
  KIVI_ASSIGN_OR_RETURN(const auto pre, header.string("tokenizer.ggml.pre"));
  v.pre = pre.value_or("default");

  KIVI_RETURN_IF_ERROR(read_id(header, "bos", count, v.bos));
  KIVI_RETURN_IF_ERROR(read_id(header, "eos", count, v.eos));
  KIVI_RETURN_IF_ERROR(read_id(header, "unknown", count, v.unknown));
  KIVI_RETURN_IF_ERROR(read_id(header, "padding", count, v.padding));
  KIVI_ASSIGN_OR_RETURN(v.add_bos, header.boolean("tokenizer.ggml.add_bos_token"));
  KIVI_ASSIGN_OR_RETURN(v.add_eos, header.boolean("tokenizer.ggml.add_eos_token"));
  KIVI_ASSIGN_OR_RETURN(v.add_space_prefix, header.boolean("tokenizer.ggml.add_space_prefix"));
  KIVI_ASSIGN_OR_RETURN(v.remove_extra_whitespaces,
                        header.boolean("tokenizer.ggml.remove_extra_whitespaces"));
  constexpr const char* kCharsmap = "tokenizer.ggml.precompiled_charsmap";
  if (header.find(kCharsmap) != nullptr)
    return header.unsupported(kCharsmap, "(a normalizer) is not supported");
  return v;
}

NamedToken named(const std::string* name) {
  NamedToken token;
  token.mentioned = name != nullptr;
  if (name != nullptr) token.name = *name;
  return token;
}

TokenizerConfig config_of(const GgufVocabulary& v) {
  TokenizerConfig config;
  config.bos = named(v.name_of(v.bos));
  config.eos = named(v.name_of(v.eos));
  config.unk = named(v.name_of(v.unknown));
  config.pad = named(v.name_of(v.padding));
  config.add_bos_token = v.add_bos.value_or(v.model == "llama");
  config.add_eos_token = v.add_eos.value_or(false);
  return config;
}

// Byte-level BPE -------------------------------------------------------------------------------

constexpr const char* kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

json split(const char* pattern) {
  return {{"type", "Split"},
          {"pattern", {{"Regex", pattern}}},
          {"behavior", "Isolated"},
          {"invert", false}};
}
json byte_level(bool use_regex) {
  return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", use_regex}};
}
json digits(bool individual) { return {{"type", "Digits"}, {"individual_digits", individual}}; }

// The names that llama.cpp gives to pre-tokenizers, by what they do.
struct PreName {
  std::string_view name;
  json (*steps)();
  bool nfc = false;  // the models' own tokenizer.json normalizes to NFC first
};

json gpt2_steps() { return json::array({byte_level(true)}); }
json digit_steps() { return json::array({digits(true), byte_level(true)}); }
json llama3_steps() { return json::array({split(kLlama3Pattern), byte_level(false)}); }
json qwen2_steps() { return json::array({split(kQwen2Pattern), byte_level(false)}); }
json falcon_steps() {
  return json::array({json{{"type", "Punctuation"}, {"behavior", "Contiguous"}}, byte_level(true),
                      digits(false), split("[0-9][0-9][0-9]")});
}

constexpr std::array kPreNames = {
    PreName{"default", falcon_steps},    PreName{"falcon", falcon_steps},
    PreName{"gpt-2", gpt2_steps},        PreName{"smollm", digit_steps},
    PreName{"starcoder", digit_steps},   PreName{"llama-bpe", llama3_steps},
    PreName{"llama3", llama3_steps},     PreName{"llama-v3", llama3_steps},
    PreName{"qwen2", qwen2_steps, true},
};

std::string pre_names() {
  std::string names;
  for (const PreName& known : kPreNames)
    names += (names.empty() ? "" : ", ") + std::string(known.name);
  return names;
}

// What stands round a text.
json template_of(const GgufVocabulary& v, const TokenizerConfig& config) {
  json single = json::array();
  const auto add = [&](const std::string* name) {
    if (name != nullptr) single.push_back({{"SpecialToken", {{"id", *name}, {"type_id", 0}}}});
  };
  if (config.add_bos_token.value_or(false)) add(v.name_of(v.bos));
  single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
  if (config.add_eos_token.value_or(false)) add(v.name_of(v.eos));
  return {{"type", "TemplateProcessing"}, {"single", single}};
}

Result<json> tokenizer_json_of(const GgufHeader& header, const GgufVocabulary& v,
                               const TokenizerConfig& config, const PreName& pre) {
  json vocab = json::object(), added = json::array();
  for (size_t id = 0; id < v.tokens.size(); ++id) {
    const std::string& name = v.tokens[id];
    if (name.empty())
      return header.invalid(fmt::format("tokenizer.ggml.tokens[{}]", id), "is empty");
    if (v.types[id] == kNormal) {
      const auto [at, is_new] = vocab.emplace(name, id);
      if (!is_new)
        return header.invalid(fmt::format("tokenizer.ggml.tokens[{}]", id),
                              fmt::format("is also tokens[{}]", at->get<size_t>()));
    } else {
      added.push_back({{"id", id}, {"content", name}, {"special", v.types[id] != kUserDefined}});
    }
  }
  json document{{"model",
                 {{"type", "BPE"},
                  {"vocab", std::move(vocab)},
                  {"merges", v.merges},
                  {"ignore_merges", pre.steps == llama3_steps}}},
                {"added_tokens", std::move(added)},
                {"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", pre.steps()}}},
                {"post_processor", template_of(v, config)},
                {"decoder", {{"type", "ByteLevel"}}}};
  if (pre.nfc) document["normalizer"] = {{"type", "NFC"}};
  return document;
}

Result<std::unique_ptr<Tokenizer>> make_bpe(const GgufHeader& header, const GgufVocabulary& v) {
  const PreName* pre = nullptr;
  for (const PreName& known : kPreNames)
    if (known.name == v.pre) pre = &known;
  if (pre == nullptr)
    return header.unsupported("tokenizer.ggml.pre",
                              fmt::format("is '{}', supported are {}", v.pre, pre_names()));
  TokenizerConfig config = config_of(v);
  config.add_bos_token = v.add_bos.value_or(pre->steps == llama3_steps);
  KIVI_ASSIGN_OR_RETURN(const json document, tokenizer_json_of(header, v, config, *pre));
  return make_bpe_tokenizer(header.file() + ": metadata as tokenizer.json", document, config);
}

// SentencePiece --------------------------------------------------------------------------------

// Writes a protobuf message (protobuf.dev, "Encoding").
class Message {
 public:
  void varint(int field, uint64_t value) {
    raw(uint64_t(field) << 3);
    raw(value);
  }
  void bytes(int field, std::string_view value) {
    raw(uint64_t(field) << 3 | 2);
    raw(value.size());
    text_ += value;
  }
  void number(int field, float value) {
    raw(uint64_t(field) << 3 | 5);
    char bits[sizeof(value)];
    std::memcpy(bits, &value, sizeof(value));
    text_.append(bits, sizeof(bits));
  }
  const std::string& text() const { return text_; }

 private:
  void raw(uint64_t value) {
    for (; value >= 0x80; value >>= 7) text_ += char(value | 0x80);
    text_ += char(value);
  }
  std::string text_;
};

// sentencepiece_model.proto, by field number.
std::string model_proto_of(const GgufVocabulary& v) {
  Message model, trainer, normalizer;
  bool has_bytes = false;
  for (size_t id = 0; id < v.tokens.size(); ++id) {
    Message piece;
    piece.bytes(1, v.tokens[id]);
    piece.number(2, v.scores[id]);
    piece.varint(3, uint64_t(v.types[id]));
    model.bytes(1, piece.text());
    has_bytes = has_bytes || v.types[id] == kByte;
  }
  trainer.varint(3, 2);  // model_type BPE
  trainer.varint(4, v.tokens.size());
  trainer.varint(35, has_bytes ? 1 : 0);  // byte_fallback
  // unk_piece: the library wants the one unknown token to be called so.
  for (size_t id = 0; id < v.tokens.size(); ++id)
    if (v.types[id] == kUnknown) trainer.bytes(45, v.tokens[id]);
  model.bytes(2, trainer.text());
  normalizer.bytes(1, "identity");
  normalizer.varint(3, v.add_space_prefix.value_or(true) ? 1 : 0);
  normalizer.varint(4, v.remove_extra_whitespaces.value_or(false) ? 1 : 0);
  normalizer.varint(5, 1);  // escape_whitespaces
  model.bytes(3, normalizer.text());
  return model.text();
}

Result<std::unique_ptr<Tokenizer>> make_sentencepiece(const GgufHeader& header,
                                                      const GgufVocabulary& v) {
  if (v.scores.empty())
    return header.invalid("tokenizer.ggml.scores",
                          "is missing or empty, must be there for 'llama'");
  return make_sentencepiece_tokenizer(header.file() + ": metadata as tokenizer.model",
                                      model_proto_of(v), config_of(v));
}

}  // namespace

Result<std::unique_ptr<Tokenizer>> make_gguf_tokenizer(const GgufHeader& header) {
  const Result<GgufVocabulary> v = read_vocabulary(header);
  Result<std::unique_ptr<Tokenizer>> tokenizer =
      !v.ok()              ? Result<std::unique_ptr<Tokenizer>>(v.error())
      : v->model == "gpt2" ? make_bpe(header, *v)
      : v->model == "llama"
          ? make_sentencepiece(header, *v)
          : header.unsupported("tokenizer.ggml.model",
                               fmt::format("is '{}', supported are gpt2 and llama", v->model));
  if (tokenizer.ok()) return tokenizer;
  Error error = tokenizer.error();
  error.field = "tokenizer";
  return error;
}

}  // namespace kivi
