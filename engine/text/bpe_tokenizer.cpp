// SPDX-License-Identifier: Apache-2.0
#include "engine/text/bpe_tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "base/utf8.h"
#include "engine/text/bpe_merges.h"
#include "engine/text/pre_tokenizer.h"
#include "engine/text/text_normalizer.h"
#include "engine/text/tokenizer_config.h"
#include "engine/text/tokenizer_json.h"
#include "engine/text/vocabulary_tokenizer.h"

namespace kivi {
namespace {

using nlohmann::json;

constexpr int32_t kMaxTokenId = 1 << 22;
constexpr uint64_t kMaxHole = 65536;  // of ids between the model's and an added one
constexpr std::string_view kVisibleSpace = "\xE2\x96\x81";  // U+2581, SentencePiece's

Error invalid(const std::string& what) {
  return Error{ErrorCode::invalid, "tokenizer.json: " + what, "tokenizer"};
}
Error unsupported(const std::string& what) {
  return Error{ErrorCode::unsupported, "tokenizer.json: " + what + " is not supported",
               "tokenizer"};
}

// A missing key reads as null.
const json& at(const json& object, const char* key) {
  static const json null;
  if (!object.is_object()) return null;
  const auto it = object.find(key);
  return it == object.end() ? null : *it;
}

// JSON in errors: short, and valid UTF-8 whatever the file holds.
std::string shown(const json& value) {
  std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
  constexpr size_t kShownMax = 60;
  if (text.size() > kShownMax) text = text.substr(0, kShownMax) + "...";
  return text;
}

std::string type_of(const json& object) { return TokenizerPart("", object).type(); }

bool is_true(const json& object, const char* key) { return at(object, key) == json(true); }

// "<0x0A>" -> 0x0A.
std::optional<unsigned char> byte_of_name(std::string_view name) {
  const auto digit = [](char c) { return c >= '0' && c <= '9' ? c - '0' : c - 'A' + 10; };
  constexpr std::string_view kDigits = "0123456789ABCDEF";
  if (name.size() != 6 || !name.starts_with("<0x") || name[5] != '>') return std::nullopt;
  if (kDigits.find(name[3]) == kDigits.npos || kDigits.find(name[4]) == kDigits.npos)
    return std::nullopt;
  return static_cast<unsigned char>(digit(name[3]) * 16 + digit(name[4]));
}

// How tokens become text ("decoder"): either the byte alphabet, or a replacement of the visible
// space, bytes by name, and one space taken off the whole text.
struct Decoding {
  bool byte_level = false;
  bool byte_fallback = false;
  bool strips_space = false;
  std::string from, to;  // in every token
};

Status read_decoder(const json& description, Decoding& decoding, bool fused) {
  const TokenizerPart part("decoder", description);
  if (part.type() == "Sequence") {
    KIVI_RETURN_IF_ERROR(part.allow({"decoders"}));
    KIVI_ASSIGN_OR_RETURN(const json* parts, part.list("decoders"));
    for (const json& each : *parts) {
      KIVI_RETURN_IF_ERROR(read_decoder(each, decoding, fused));
      fused = fused || type_of(each) == "Fuse";
    }
    return ok_status();
  }
  if (part.type() == "ByteLevel") {
    decoding.byte_level = true;
    return part.allow({"add_prefix_space", "trim_offsets", "use_regex"});
  }
  if (part.type() == "ByteFallback" && !fused) {
    decoding.byte_fallback = true;
    return part.allow({});
  }
  if (part.type() == "Fuse") return part.allow({});
  if (part.type() == "Replace" && !fused && decoding.from.empty()) {
    KIVI_RETURN_IF_ERROR(part.allow({"pattern", "content"}));
    decoding.from = part.pattern_string();
    decoding.to = part.text("content");
    if (decoding.from.empty()) return part.unsupported("with a pattern that is no String");
    return ok_status();
  }
  if (part.type() == "Metaspace" && decoding.from.empty()) {
    KIVI_RETURN_IF_ERROR(
        part.allow({"replacement", "add_prefix_space", "prepend_scheme", "split"}));
    decoding.from = part.text("replacement");
    decoding.to = " ";
    decoding.strips_space =
        part.text("prepend_scheme") != "never" && part.flag("add_prefix_space", true);
    if (decoding.from.empty()) return part.unsupported("without replacement");
    return ok_status();
  }
  if (part.type() == "Strip" && fused && part.text("content") == " " && part.at("start") == 1 &&
      part.at("stop") == 0) {
    decoding.strips_space = true;
    return part.allow({"content", "start", "stop"});
  }
  return part.unsupported(part.type() == "Strip" ? "other than of one space at the start" : "here");
}

class BpeTokenizer final : public VocabularyTokenizer {
 public:
  Status load(const json& file, const TokenizerConfig& config);

  bool strips_leading_space() const override { return decoding_.strips_space; }
  int longest_token_bytes() const override { return loses_text_ ? 0 : longest_token_bytes_; }
  std::string kind() const override {
    if (decoding_.byte_level) return "byte-level bpe";
    return byte_fallback_ ? "bpe with byte fallback" : "bpe";
  }

 private:
  Status load_model(const json& model);
  Status load_vocabulary(const json& vocab);
  Status load_merges(const json& merges);
  Status load_added_tokens(const json& added);
  Status load_post_processor(const json& description);
  void find_whole_tokens();
  // Writes a token's name as bytes; a name outside the alphabet (added tokens) is its own bytes.
  void define(int32_t id, const std::string& name, bool special);

  // Memory of one encode().
  struct Scratch {
    RegexScratch regex;
    BpeMerges::Scratch merges;
    std::string mapped;
    std::vector<Span> pieces;
    std::vector<int32_t> symbols;
    std::vector<AddedTokens::Part> parts, inner_parts;
    // Pieces that were merged before: texts repeat their words. Their ids are a part of cached_ids.
    std::unordered_map<std::string, Span, Vocabulary::Hash, std::equal_to<>> cache;
    std::vector<int32_t> cached_ids;
  };
  std::vector<int32_t> ids_of(std::string_view text, bool add_special_tokens, SpecialText special,
                              bool at_start) const override;
  void encode_text(std::string_view text, bool at_text_start, Scratch& scratch,
                   std::vector<int32_t>& ids) const;
  void encode_piece(std::string_view piece, Scratch& scratch, std::vector<int32_t>& ids) const;
  void merge_piece(std::string_view piece, Scratch& scratch, std::vector<int32_t>& ids) const;
  // The id of a name that the model (not an added token) has; -1: none.
  int32_t model_id(std::string_view name) const {
    const auto id = vocabulary_.find(name);
    return id && size_t(*id) < in_model_.size() && in_model_[size_t(*id)] ? *id : -1;
  }
  // Where a piece that starts at `begin` and may be cut before spaces ends.
  static size_t word_end(std::string_view text, size_t begin);

  ByteAlphabet alphabet_;
  Decoding decoding_;
  std::array<int32_t, 256> byte_ids_;  // "<0x0A>"; -1: none
  BpeMerges merges_;
  std::vector<bool> in_model_;
  // Ids whose name, as a piece, is that one token: no merging is needed to know it.
  std::vector<bool> whole_;
  bool ignore_merges_ = false;  // a piece that is a token is that token, whatever the merges say
  bool byte_fallback_ = false, fuse_unknown_ = false;
  // No token crosses the border between a character and a visible space after it, so a piece may be
  // cut there without changing its tokens.
  bool may_cut_before_spaces_ = false;
  std::optional<int32_t> unknown_;
  std::optional<TextNormalizer> normalizer_;
  std::optional<PreTokenizer> pre_tokenizer_;
  // Looked for in the text as it came, and in the normalized text.
  std::optional<AddedTokens> added_, added_normalized_;
  std::vector<int32_t> before_, after_;  // special tokens round a text
  int longest_token_bytes_ = 0;
  bool loses_text_ = false;  // some text gives no tokens, or fewer than its bytes call for
};

void BpeTokenizer::define(int32_t id, const std::string& name, bool special) {
  std::string bytes = name;
  if (decoding_.byte_level) {
    bytes = alphabet_.decode(name).value_or(name);
  } else {
    const auto byte = decoding_.byte_fallback ? byte_of_name(name) : std::nullopt;
    if (byte)
      bytes = std::string(1, char(*byte));
    else if (!decoding_.from.empty())
      bytes = replace_all(name, decoding_.from, decoding_.to);
  }
  longest_token_bytes_ = std::max(longest_token_bytes_, int(std::max(bytes.size(), name.size())));
  vocabulary_.set(id, name, std::move(bytes), special);
}

Status BpeTokenizer::load(const json& file, const TokenizerConfig& config) {
  // Truncation and padding are how a training batch was made; Transformers ignores both as well.
  KIVI_RETURN_IF_ERROR(TokenizerPart("file", file)
                           .allow({"version", "truncation", "padding", "added_tokens", "normalizer",
                                   "pre_tokenizer", "post_processor", "decoder", "model"}));
  KIVI_RETURN_IF_ERROR(read_decoder(at(file, "decoder"), decoding_, /*fused=*/false));
  if (decoding_.byte_level && (decoding_.byte_fallback || !decoding_.from.empty()))
    return unsupported("decoder ByteLevel beside others");
  KIVI_ASSIGN_OR_RETURN(normalizer_, TextNormalizer::load(at(file, "normalizer")));
  loses_text_ = normalizer_->shortens();
  KIVI_RETURN_IF_ERROR(load_model(at(file, "model")));
  KIVI_RETURN_IF_ERROR(load_added_tokens(at(file, "added_tokens")));
  KIVI_RETURN_IF_ERROR(apply_added_tokens(config, vocabulary_));
  KIVI_ASSIGN_OR_RETURN(
      pre_tokenizer_,
      PreTokenizer::load(at(file, "pre_tokenizer"),
                         decoding_.byte_level ? Pieces::byte_alphabet : Pieces::text));
  loses_text_ = loses_text_ || pre_tokenizer_->removes_text();
  KIVI_RETURN_IF_ERROR(load_post_processor(at(file, "post_processor")));
  find_whole_tokens();
  KIVI_ASSIGN_OR_RETURN(bos_, find_token(config.bos, "bos_token", vocabulary_));
  KIVI_ASSIGN_OR_RETURN(eos_, find_token(config.eos, "eos_token", vocabulary_));
  return ok_status();
}

Status BpeTokenizer::load_model(const json& model) {
  const TokenizerPart part("model", model);
  // Files of before the type was written have BPE alone with merges.
  const bool untyped = part.type() == "without a type" && !at(model, "merges").is_null();
  if (part.type() != "BPE" && !untyped) return unsupported("model " + part.type());
  KIVI_RETURN_IF_ERROR(
      part.allow({"dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
                  "fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges"}));
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!at(model, key).is_null() && at(model, key) != json("")) {
      return unsupported(fmt::format("model.{} {}", key, shown(at(model, key))));
    }
  }
  if (!at(model, "dropout").is_null()) return unsupported("model.dropout");
  byte_fallback_ = is_true(model, "byte_fallback");
  if (byte_fallback_ && decoding_.byte_level)
    return unsupported("model.byte_fallback with decoder ByteLevel");
  fuse_unknown_ = is_true(model, "fuse_unk");
  ignore_merges_ = is_true(model, "ignore_merges");
  KIVI_RETURN_IF_ERROR(load_vocabulary(at(model, "vocab")));
  if (!part.text("unk_token").empty()) {
    const auto hole = std::find(byte_ids_.begin(), byte_ids_.end(), -1);
    if (decoding_.byte_level && hole != byte_ids_.end())
      return unsupported(fmt::format("model.unk_token with a vocab without the byte 0x{:02X}",
                                     hole - byte_ids_.begin()));
    unknown_ = vocabulary_.find(part.text("unk_token"));
    if (!unknown_ && !decoding_.byte_level)
      return invalid(
          fmt::format("model.unk_token {} is not in the vocabulary", shown(part.at("unk_token"))));
  }
  return load_merges(at(model, "merges"));
}

Status BpeTokenizer::load_vocabulary(const json& vocab) {
  if (!vocab.is_object()) return invalid("model.vocab is not an object");
  // Ids are nearly dense; a table of them must not be larger than the file calls for.
  const uint64_t ids_max = std::min(uint64_t(kMaxTokenId), vocab.size() + kMaxHole);
  may_cut_before_spaces_ = !decoding_.byte_level;
  byte_ids_.fill(-1);
  for (const auto& [name, id] : vocab.items()) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > ids_max) {
      return invalid(
          fmt::format("model.vocab[{}] is not an id up to {}", shown(json(name)), ids_max));
    }
    const auto number = id.get<int32_t>();
    define(number, name, /*special=*/false);
    if (size_t(number) >= in_model_.size()) in_model_.resize(size_t(number) + 1);
    in_model_[size_t(number)] = true;
    if (const auto byte = byte_of_name(name)) byte_ids_[*byte] = number;
    if (word_end(name, 0) < name.size()) may_cut_before_spaces_ = false;
  }
  if (model_id(kVisibleSpace) < 0) may_cut_before_spaces_ = false;
  bool all_bytes = true;
  for (int byte = 0; byte < 256; ++byte) {
    if (decoding_.byte_level)
      byte_ids_[size_t(byte)] = model_id(alphabet_.character(static_cast<unsigned char>(byte)));
    all_bytes = all_bytes && byte_ids_[size_t(byte)] >= 0;
  }
  const bool covers = all_bytes && (decoding_.byte_level || byte_fallback_);
  loses_text_ = loses_text_ || !covers;
  return ok_status();
}

// A merge is written "left right" or ["left", "right"].
Status BpeTokenizer::load_merges(const json& merges) {
  if (!merges.is_array()) return invalid("model.merges is not a list");
  for (size_t i = 0; i < merges.size(); ++i) {
    std::string left, right;
    if (merges[i].is_string()) {
      const auto whole = merges[i].get<std::string>();
      const size_t space = whole.find(' ');
      if (space != std::string::npos) {
        left = whole.substr(0, space);
        right = whole.substr(space + 1);
      }
    } else if (merges[i].is_array() && merges[i].size() == 2 && merges[i][0].is_string() &&
               merges[i][1].is_string()) {
      left = merges[i][0].get<std::string>();
      right = merges[i][1].get<std::string>();
    }
    const int32_t left_id = model_id(left), right_id = model_id(right);
    const int32_t merged_id = model_id(left + right);
    if (left.empty() || left_id < 0 || right_id < 0 || merged_id < 0) {
      return invalid(fmt::format("model.merges[{}] is {}, must be two tokens whose join is one", i,
                                 shown(merges[i])));
    }
    merges_.add(left_id, right_id, merged_id);
  }
  return ok_status();
}

Status BpeTokenizer::load_added_tokens(const json& added) {
  if (!added.is_null() && !added.is_array()) return invalid("added_tokens is not a list");
  std::vector<AddedTokenRule> rules, normalized;
  for (const json& token : added.is_null() ? json::array() : added) {
    const TokenizerPart part("added token", token);
    KIVI_RETURN_IF_ERROR(
        part.allow({"id", "content", "special", "normalized", "single_word", "lstrip", "rstrip"}));
    const json& id = part.at("id");
    if (!id.is_number_unsigned() || id.get<uint64_t>() > uint64_t(kMaxTokenId) ||
        id.get<uint64_t>() > uint64_t(vocabulary_.size()) + kMaxHole ||
        part.text("content").empty()) {
      return invalid(
          "added_tokens has an entry without id (not far beyond the vocabulary) or "
          "content: " +
          shown(token));
    }
    AddedTokenRule rule{.id = id.get<int32_t>(), .content = part.text("content")};
    rule.special = part.flag("special", false);
    rule.normalized = part.flag("normalized", !rule.special);
    rule.single_word = part.flag("single_word", false);
    rule.lstrip = part.flag("lstrip", false);
    rule.rstrip = part.flag("rstrip", false);
    loses_text_ = loses_text_ || rule.lstrip || rule.rstrip;
    if (rule.normalized) rule.content = normalizer_->apply(rule.content);
    define(rule.id, rule.content, rule.special);
    if (rule.special) vocabulary_.mark_special(rule.id);
    (rule.normalized ? normalized : rules).push_back(std::move(rule));
  }
  KIVI_ASSIGN_OR_RETURN(added_, AddedTokens::load(rules));
  KIVI_ASSIGN_OR_RETURN(added_normalized_, AddedTokens::load(normalized));
  return ok_status();
}

Status BpeTokenizer::load_post_processor(const json& description) {
  if (description.is_null()) return ok_status();
  const TokenizerPart processor("post_processor", description);
  const std::string& type = processor.type();
  if (type == "ByteLevel")  // offsets alone
    return processor.allow({"add_prefix_space", "trim_offsets", "use_regex"});
  if (type == "Sequence" && at(description, "processors").is_array()) {
    KIVI_RETURN_IF_ERROR(processor.allow({"processors"}));
    for (const json& part : at(description, "processors")) {
      KIVI_RETURN_IF_ERROR(load_post_processor(part));
    }
    return ok_status();
  }
  if (type != "TemplateProcessing" || !at(description, "single").is_array()) {
    return unsupported("post_processor " + type);
  }
  KIVI_RETURN_IF_ERROR(processor.allow({"single", "pair", "special_tokens"}));
  bool after_text = false;
  for (const json& part : at(description, "single")) {
    if (part.contains("Sequence")) {
      if (after_text) return unsupported("post_processor with the text twice");
      after_text = true;
      continue;
    }
    const json& name = at(at(part, "SpecialToken"), "id");
    const auto id = name.is_string() ? vocabulary_.find(name.get<std::string>()) : std::nullopt;
    if (!id) return invalid("post_processor names no token of the vocabulary: " + shown(part));
    (after_text ? after_ : before_).push_back(*id);
  }
  if (!after_text) return unsupported("post_processor without the text");
  return ok_status();
}

void BpeTokenizer::find_whole_tokens() {
  Scratch scratch;
  std::vector<int32_t> ids;
  std::vector<bool> whole(in_model_.size());
  for (int32_t id = 0; size_t(id) < in_model_.size(); ++id) {
    const std::string& name = vocabulary_.name(id);
    if (!in_model_[size_t(id)] || name.empty() || vocabulary_.is_special(id)) continue;
    ids.clear();
    if (!ignore_merges_) merge_piece(name, scratch, ids);
    whole[size_t(id)] = ignore_merges_ || (ids.size() == 1 && ids[0] == id);
  }
  whole_ = std::move(whole);
}

std::vector<int32_t> BpeTokenizer::ids_of(std::string_view text, bool add_special_tokens,
                                          SpecialText special, bool at_start) const {
  std::string replaced;
  text = as_valid_utf8(text, replaced);
  Scratch scratch;
  std::vector<int32_t> ids;
  if (add_special_tokens) ids = before_;
  added_->split(text, special, scratch.regex, scratch.parts);
  std::string normalized;
  for (const AddedTokens::Part& part : scratch.parts) {
    if (part.id) {
      ids.push_back(*part.id);
      continue;
    }
    std::string_view inner = text.substr(part.span.begin, part.span.end - part.span.begin);
    if (!normalizer_->empty()) inner = normalized = normalizer_->apply(inner);
    scratch.inner_parts.clear();
    added_normalized_->split(inner, special, scratch.regex, scratch.inner_parts);
    for (const AddedTokens::Part& p : scratch.inner_parts) {
      if (p.id)
        ids.push_back(*p.id);
      else
        encode_text(inner.substr(p.span.begin, p.span.end - p.span.begin),
                    at_start && part.span.begin == 0 && p.span.begin == 0, scratch, ids);
    }
  }
  if (add_special_tokens) ids.insert(ids.end(), after_.begin(), after_.end());
  return ids;
}

void BpeTokenizer::encode_text(std::string_view text, bool at_text_start, Scratch& scratch,
                               std::vector<int32_t>& ids) const {
  pre_tokenizer_->split(text, at_text_start, scratch.regex, scratch.mapped, scratch.pieces);
  for (const Span& span : scratch.pieces) {
    const auto piece = std::string_view(scratch.mapped).substr(span.begin, span.end - span.begin);
    if (!may_cut_before_spaces_ || ignore_merges_) {
      encode_piece(piece, scratch, ids);
      continue;
    }
    for (size_t begin = 0; begin < piece.size();) {
      const size_t end = word_end(piece, begin);
      encode_piece(piece.substr(begin, end - begin), scratch, ids);
      begin = end;
    }
  }
}

size_t BpeTokenizer::word_end(std::string_view text, size_t begin) {
  size_t at = begin;
  while (text.substr(at).starts_with(kVisibleSpace)) at += kVisibleSpace.size();
  return std::min(text.find(kVisibleSpace, at), text.size());
}

void BpeTokenizer::encode_piece(std::string_view piece, Scratch& scratch,
                                std::vector<int32_t>& ids) const {
  constexpr size_t kCachedBytes = 64, kCachedPieces = 1 << 16;
  const auto whole = vocabulary_.find(piece);
  if (whole && size_t(*whole) < whole_.size() && whole_[size_t(*whole)]) {
    ids.push_back(*whole);
    return;
  }
  if (piece.size() > kCachedBytes) return merge_piece(piece, scratch, ids);
  if (const auto it = scratch.cache.find(piece); it != scratch.cache.end()) {
    const auto begin = scratch.cached_ids.begin();
    ids.insert(ids.end(), begin + it->second.begin, begin + it->second.end);
    return;
  }
  const size_t first = ids.size();
  merge_piece(piece, scratch, ids);
  if (scratch.cache.size() == kCachedPieces) return;
  const auto begin = uint32_t(scratch.cached_ids.size());
  scratch.cached_ids.insert(scratch.cached_ids.end(), ids.begin() + std::ptrdiff_t(first),
                            ids.end());
  scratch.cache.emplace(piece, Span{begin, uint32_t(scratch.cached_ids.size())});
}

void BpeTokenizer::merge_piece(std::string_view piece, Scratch& scratch,
                               std::vector<int32_t>& ids) const {
  auto& symbols = scratch.symbols;
  symbols.clear();
  bool after_unknown = false;
  for (size_t i = 0, next = 0; i < piece.size(); i = next) {
    for (next = i + 1; next < piece.size() && (piece[next] & 0xC0) == 0x80;) ++next;
    const std::string_view character = piece.substr(i, next - i);
    const bool was_unknown = std::exchange(after_unknown, false);
    if (decoding_.byte_level) {
      uint32_t c = static_cast<unsigned char>(piece[i]);
      if (c >= 0x80) c = (c & 0x1F) << 6 | (static_cast<unsigned char>(piece[next - 1]) & 0x3F);
      // A vocabulary may lack bytes (SmolLM2's does): they are left out, as Hugging Face does.
      const int byte = alphabet_.byte(c), id = byte < 0 ? -1 : byte_ids_[size_t(byte)];
      if (id >= 0) symbols.push_back(id);
      continue;
    }
    if (const int32_t id = model_id(character); id >= 0) {
      symbols.push_back(id);
      continue;
    }
    const auto has_byte = [&](char c) { return byte_ids_[static_cast<unsigned char>(c)] >= 0; };
    if (byte_fallback_ && std::all_of(character.begin(), character.end(), has_byte)) {
      for (const char c : character) symbols.push_back(byte_ids_[static_cast<unsigned char>(c)]);
      continue;
    }
    // Without an unknown token the character is lost, as it is to Hugging Face's tokenizers.
    if (unknown_ && !(fuse_unknown_ && was_unknown)) symbols.push_back(*unknown_);
    after_unknown = true;
  }
  merges_.merge(symbols, scratch.merges, ids);
}

}  // namespace

Result<std::unique_ptr<Tokenizer>> load_bpe_tokenizer(const std::string& folder) {
  KIVI_ASSIGN_OR_RETURN(const TokenizerConfig config, read_tokenizer_config(folder));
  KIVI_ASSIGN_OR_RETURN(const json file, read_json_object(folder + "/tokenizer.json"));
  return make_bpe_tokenizer(folder, file, config);
}

Result<std::unique_ptr<Tokenizer>> make_bpe_tokenizer(const std::string& place,
                                                      const json& tokenizer_json,
                                                      const TokenizerConfig& config) {
  auto tokenizer = std::make_unique<BpeTokenizer>();
  if (const Status status = tokenizer->load(tokenizer_json, config); !status.ok()) {
    Error error = status.error();
    error.message = fmt::format("{}: {}", place, error.message);
    return error;
  }
  return std::unique_ptr<Tokenizer>(std::move(tokenizer));
}

}  // namespace kivi
