#include "engine/bpe_tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "engine/bpe_merges.h"
#include "engine/pre_tokenizer.h"
#include "engine/tokenizer_config.h"
#include "engine/utf8.h"
#include "engine/vocabulary.h"

namespace kivi {
namespace {

using nlohmann::json;

constexpr int32_t kMaxTokenId = 1 << 24;

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

std::string type_of(const json& object) {
  const json& type = at(object, "type");
  return type.is_string() ? type.get<std::string>() : "without a type";
}

bool is_true(const json& object, const char* key) { return at(object, key) == json(true); }

class BpeTokenizer final : public Tokenizer {
 public:
  Status load(const json& file, const TokenizerConfig& config);

  std::vector<int32_t> encode(std::string_view text, bool add_special_tokens) const override;
  const std::string& token_bytes(int32_t id, bool skip_special) const override {
    return vocabulary_.bytes(id, skip_special);
  }
  std::string token_name(int32_t id) const override { return vocabulary_.name(id); }
  std::optional<int32_t> token_id(std::string_view name) const override {
    return vocabulary_.find(name);
  }
  bool strips_leading_space() const override { return false; }
  int vocab_size() const override { return vocabulary_.size(); }
  int longest_token_bytes() const override { return longest_token_bytes_; }
  std::optional<int32_t> bos_id() const override { return bos_; }
  std::optional<int32_t> eos_id() const override { return eos_; }
  std::string kind() const override { return "byte-level bpe"; }

 private:
  Status load_model(const json& model);
  Status load_merges(const json& merges);
  Status load_added_tokens(const json& added);
  Status load_post_processor(const json& description);
  // Writes a token's name as bytes; a name outside the alphabet (added tokens) is its own bytes.
  void define(int32_t id, const std::string& name, bool special);

  struct Scratch {
    RegexScratch regex;
    BpeMerges::Scratch merges;
    std::string mapped;
    std::vector<Span> pieces;
    std::vector<int32_t> symbols;
  };
  void encode_text(std::string_view text, Scratch& scratch, std::vector<int32_t>& ids) const;

  ByteAlphabet alphabet_;
  Vocabulary vocabulary_;
  std::array<int32_t, 256> byte_ids_;
  BpeMerges merges_;
  bool ignore_merges_ = false;  // a piece that is a token is that token, whatever the merges say
  std::optional<PreTokenizer> pre_tokenizer_;
  std::optional<Regex> added_;  // added tokens that are not special: they are found in texts
  std::vector<int32_t> before_, after_;  // special tokens round a text
  std::optional<int32_t> bos_, eos_;
  int longest_token_bytes_ = 0;
};

void BpeTokenizer::define(int32_t id, const std::string& name, bool special) {
  std::string bytes = alphabet_.decode(name).value_or(name);
  longest_token_bytes_ = std::max(longest_token_bytes_, int(bytes.size()));
  vocabulary_.set(id, name, std::move(bytes), special);
}

Status BpeTokenizer::load(const json& file, const TokenizerConfig& config) {
  if (!at(file, "normalizer").is_null()) {
    return unsupported("normalizer " + type_of(at(file, "normalizer")));
  }
  if (type_of(at(file, "decoder")) != "ByteLevel") {
    return unsupported("decoder " + type_of(at(file, "decoder")));
  }
  RETURN_IF_ERROR(load_model(at(file, "model")));
  RETURN_IF_ERROR(load_added_tokens(at(file, "added_tokens")));
  RETURN_IF_ERROR(apply_added_tokens(config, vocabulary_));
  ASSIGN_OR_RETURN(pre_tokenizer_, PreTokenizer::load(at(file, "pre_tokenizer")));
  RETURN_IF_ERROR(load_post_processor(at(file, "post_processor")));
  ASSIGN_OR_RETURN(bos_, find_token(config.bos, "bos_token", vocabulary_));
  ASSIGN_OR_RETURN(eos_, find_token(config.eos, "eos_token", vocabulary_));
  return ok_status();
}

Status BpeTokenizer::load_model(const json& model) {
  if (type_of(model) != "BPE") return unsupported("model " + type_of(model));
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!at(model, key).is_null() && at(model, key) != json("")) {
      return unsupported(fmt::format("model.{} {}", key, at(model, key).dump()));
    }
  }
  if (!at(model, "dropout").is_null()) return unsupported("model.dropout");
  if (is_true(model, "byte_fallback")) return unsupported("model.byte_fallback");
  ignore_merges_ = is_true(model, "ignore_merges");

  const json& vocab = at(model, "vocab");
  if (!vocab.is_object()) return invalid("model.vocab is not an object");
  for (const auto& [name, id] : vocab.items()) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > uint64_t(kMaxTokenId)) {
      return invalid(
          fmt::format("model.vocab[{}] is not an id up to {}", json(name).dump(), kMaxTokenId));
    }
    define(id.get<int32_t>(), name, /*special=*/false);
  }
  for (int byte = 0; byte < 256; ++byte) {
    const auto id = vocabulary_.find(alphabet_.character(static_cast<unsigned char>(byte)));
    if (!id) return unsupported(fmt::format("model.vocab without the byte 0x{:02X}", byte));
    byte_ids_[size_t(byte)] = *id;
  }
  return load_merges(at(model, "merges"));
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
    const auto left_id = vocabulary_.find(left), right_id = vocabulary_.find(right);
    const auto merged_id = vocabulary_.find(left + right);
    if (left.empty() || !left_id || !right_id || !merged_id) {
      return invalid(fmt::format("model.merges[{}] is {}, must be two tokens whose join is one", i,
                                 merges[i].dump()));
    }
    merges_.add(*left_id, *right_id, *merged_id);
  }
  return ok_status();
}

Status BpeTokenizer::load_added_tokens(const json& added) {
  if (added.is_null()) return ok_status();
  if (!added.is_array()) return invalid("added_tokens is not a list");
  std::vector<std::string> in_texts;
  for (const json& token : added) {
    const json& id = at(token, "id");
    const json& content = at(token, "content");
    if (!id.is_number_unsigned() || id.get<uint64_t>() > uint64_t(kMaxTokenId) ||
        !content.is_string() || content == json("")) {
      return invalid("added_tokens has an entry without id or content: " + token.dump());
    }
    const auto name = content.get<std::string>();
    const bool special = is_true(token, "special");
    define(id.get<int32_t>(), name, special);
    if (special) continue;
    for (const char* key : {"single_word", "lstrip", "rstrip"}) {
      if (is_true(token, key)) return unsupported(fmt::format("added token {} with {}", name, key));
    }
    in_texts.push_back(name);
  }
  if (in_texts.empty()) return ok_status();
  // Of those that begin at the same place the longest is found: it stands first.
  std::stable_sort(in_texts.begin(), in_texts.end(),
                   [](const auto& a, const auto& b) { return a.size() > b.size(); });
  std::string pattern;
  for (const std::string& name : in_texts) {
    if (name.find("\\E") != std::string::npos) return unsupported("added token " + name);
    pattern += (pattern.empty() ? "\\Q" : "|\\Q") + name + "\\E";
  }
  ASSIGN_OR_RETURN(added_, Regex::compile(pattern));
  return ok_status();
}

Status BpeTokenizer::load_post_processor(const json& description) {
  if (description.is_null()) return ok_status();
  const std::string type = type_of(description);
  if (type == "ByteLevel") return ok_status();  // offsets alone
  if (type == "Sequence" && at(description, "processors").is_array()) {
    for (const json& part : at(description, "processors")) {
      RETURN_IF_ERROR(load_post_processor(part));
    }
    return ok_status();
  }
  if (type != "TemplateProcessing" || !at(description, "single").is_array()) {
    return unsupported("post_processor " + type);
  }
  bool after_text = false;
  for (const json& part : at(description, "single")) {
    if (part.contains("Sequence")) {
      if (after_text) return unsupported("post_processor with the text twice");
      after_text = true;
      continue;
    }
    const json& name = at(at(part, "SpecialToken"), "id");
    const auto id = name.is_string() ? vocabulary_.find(name.get<std::string>()) : std::nullopt;
    if (!id) return invalid("post_processor names no token of the vocabulary: " + part.dump());
    (after_text ? after_ : before_).push_back(*id);
  }
  if (!after_text) return unsupported("post_processor without the text");
  return ok_status();
}

std::vector<int32_t> BpeTokenizer::encode(std::string_view text, bool add_special_tokens) const {
  std::string valid;
  if (!is_valid_utf8(text)) {
    Utf8Stream stream;
    stream.append(text, valid);
    stream.flush(valid);
    text = valid;
  }
  Scratch scratch;
  std::vector<int32_t> ids;
  if (add_special_tokens) ids = before_;
  std::vector<Span> found;
  if (added_) added_->find_all(text, scratch.regex, found);
  size_t begin = 0;
  for (const Span& token : found) {
    encode_text(text.substr(begin, token.begin - begin), scratch, ids);
    ids.push_back(*vocabulary_.find(text.substr(token.begin, token.end - token.begin)));
    begin = token.end;
  }
  encode_text(text.substr(begin), scratch, ids);
  if (add_special_tokens) ids.insert(ids.end(), after_.begin(), after_.end());
  return ids;
}

void BpeTokenizer::encode_text(std::string_view text, Scratch& scratch,
                               std::vector<int32_t>& ids) const {
  pre_tokenizer_->split(text, scratch.regex, scratch.mapped, scratch.pieces);
  for (const Span& span : scratch.pieces) {
    const auto piece = std::string_view(scratch.mapped).substr(span.begin, span.end - span.begin);
    if (ignore_merges_) {
      const auto whole = vocabulary_.find(piece);
      if (whole && !vocabulary_.is_special(*whole)) {
        ids.push_back(*whole);
        continue;
      }
    }
    scratch.symbols.clear();
    for (size_t i = 0; i < piece.size(); ++i) {
      uint32_t c = static_cast<unsigned char>(piece[i]);
      if (c >= 0x80) c = (c & 0x1F) << 6 | (static_cast<unsigned char>(piece[++i]) & 0x3F);
      scratch.symbols.push_back(byte_ids_[size_t(alphabet_.byte(c))]);
    }
    merges_.merge(scratch.symbols, scratch.merges, ids);
  }
}

}  // namespace

Result<std::unique_ptr<Tokenizer>> load_bpe_tokenizer(const std::string& folder) {
  ASSIGN_OR_RETURN(const TokenizerConfig config, read_tokenizer_config(folder));
  ASSIGN_OR_RETURN(const json file, read_json_object(folder + "/tokenizer.json"));
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
