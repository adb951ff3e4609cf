// SPDX-License-Identifier: Apache-2.0
#include "engine/text/sentencepiece_tokenizer.h"

// Defines absl::string_view itself: this must stay the only source that includes it.
#include <fmt/format.h>
#include <sentencepiece_processor.h>

#include <algorithm>
#include <iterator>
#include <unordered_map>

#include "base/json_file.h"
#include "base/utf8.h"
#include "engine/text/tokenizer_config.h"
#include "engine/text/vocabulary_tokenizer.h"

namespace kivi {
namespace {

constexpr std::string_view kSpace = "\xE2\x96\x81";  // U+2581, the library's visible space

// What of the ModelProto the library keeps to itself (sentencepiece_model.proto, by field number).
struct ModelSpec {
  int model_type = 1;                       // trainer_spec.model_type (2.3): unigram 1, BPE 2
  bool add_dummy_prefix = true;             // normalizer_spec (3.3)
  bool remove_extra_whitespaces = true;     // normalizer_spec (3.4)
  bool escape_whitespaces = true;           // normalizer_spec (3.5)
  bool treat_whitespace_as_suffix = false;  // trainer_spec (2.24)
  bool has_charsmap = false;                // normalizer_spec (3.2): text is rewritten first
};

// One field of a serialized protobuf message.
struct WireField {
  uint32_t number = 0;
  uint64_t value = 0;      // varint
  std::string_view bytes;  // length-delimited
};

bool read_varint(std::string_view& data, uint64_t& value) {
  value = 0;
  for (int shift = 0; shift < 64 && !data.empty(); shift += 7) {
    const auto byte = static_cast<unsigned char>(data.front());
    data.remove_prefix(1);
    value |= uint64_t(byte & 0x7F) << shift;
    if (byte < 0x80) return true;
  }
  return false;
}

// Takes a field off `data`; false at the end and where the bytes are no message.
bool read_field(std::string_view& data, WireField& field) {
  uint64_t tag = 0, length = 0;
  if (data.empty() || !read_varint(data, tag)) return false;
  field = {.number = uint32_t(tag >> 3)};
  switch (tag & 7) {
    case 0:
      return read_varint(data, field.value);
    case 1:
      length = 8;
      break;
    case 2:
      if (!read_varint(data, length)) return false;
      break;
    case 5:
      length = 4;
      break;
    default:
      return false;
  }
  if (length > data.size()) return false;
  field.bytes = data.substr(0, length);
  data.remove_prefix(length);
  return true;
}

ModelSpec read_spec(std::string_view model) {
  ModelSpec spec;
  WireField outer, field;
  while (read_field(model, outer)) {
    while (outer.number == 2 && read_field(outer.bytes, field)) {
      if (field.number == 3) spec.model_type = int(field.value);
      if (field.number == 24) spec.treat_whitespace_as_suffix = field.value != 0;
    }
    while (outer.number == 3 && read_field(outer.bytes, field)) {
      if (field.number == 2) spec.has_charsmap = !field.bytes.empty();
      if (field.number == 3) spec.add_dummy_prefix = field.value != 0;
      if (field.number == 4) spec.remove_extra_whitespaces = field.value != 0;
      if (field.number == 5) spec.escape_whitespaces = field.value != 0;
    }
  }
  return spec;
}

// A byte's piece is named "<0x0A>".
std::optional<std::string> byte_of_piece(const std::string& name) {
  unsigned value = 0;
  if (name.size() != 6 || std::sscanf(name.c_str(), "<0x%2X>", &value) != 1) return std::nullopt;
  return std::string(1, char(value));
}

std::string with_replaced(std::string text, std::string_view from, std::string_view to) {
  for (size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size()) {
    text.replace(at, from.size(), to);
  }
  return text;
}

// Who puts a space before a text.
enum class Prefix { none, library, here };

class SentencePieceTokenizer final : public VocabularyTokenizer {
 public:
  Status load(const std::string& place, std::string model, const TokenizerConfig& config);

  bool strips_leading_space() const override { return prefix_ != Prefix::none; }
  int longest_token_bytes() const override {
    return spec_.has_charsmap || spec_.remove_extra_whitespaces ? 0 : longest_token_bytes_;
  }
  std::string kind() const override {
    return spec_.model_type == 2 ? "sentencepiece bpe" : "sentencepiece unigram";
  }

 private:
  void fill_vocabulary();
  void choose_prefix(const TokenizerConfig& config);
  Status find_specials();
  std::vector<int32_t> ids_of(std::string_view text, bool add_special_tokens, SpecialText special,
                              bool at_start) const override;
  void encode_piecewise(std::string_view text, std::vector<int32_t>& ids) const;

  sentencepiece::SentencePieceProcessor processor_;
  ModelSpec spec_;
  int longest_token_bytes_ = 0;
  Prefix prefix_ = Prefix::none;
  bool legacy_ = true;
  std::optional<AddedTokens> specials_;  // by their names
  // No token crosses the border between a character and a space after it, so a text may be cut
  // there without changing its tokens.
  bool may_cut_before_spaces_ = false;
  bool add_bos_ = true, add_eos_ = false;
};

Error bad_model(const std::string& path, const std::string& what) {
  return Error{ErrorCode::invalid, fmt::format("{}: {}", path, what), "tokenizer"};
}

// The id of the configured token; where nothing is said of it the library's own (-1: none).
Result<std::optional<int32_t>> resolve(const NamedToken& token, const char* key, int library_id,
                                       const Vocabulary& vocabulary, const std::string& place) {
  auto id = find_token(token, key, vocabulary);
  if (!id.ok()) return bad_model(place, id.error().message);
  if (!token.mentioned && library_id >= 0) return std::optional<int32_t>(library_id);
  return id;
}

Status SentencePieceTokenizer::load(const std::string& place, std::string model,
                                    const TokenizerConfig& config) {
  spec_ = read_spec(model);
  choose_prefix(config);
  // A field that stands twice in a message counts as merged, so this switches the library's own
  // prefix off: normalizer_spec { add_dummy_prefix: false }.
  if (prefix_ != Prefix::library) model.append("\x1a\x02\x18\x00", 4);
  try {
    if (const auto status = processor_.LoadFromSerializedProto(model); !status.ok())
      return bad_model(place, fmt::format("not a SentencePiece model ({})", status.ToString()));
  } catch (const std::exception& e) {  // a piece without a name, say
    return bad_model(place, fmt::format("not a SentencePiece model ({})", e.what()));
  }
  fill_vocabulary();
  KIVI_RETURN_IF_ERROR(apply_added_tokens(config, vocabulary_));
  KIVI_RETURN_IF_ERROR(find_specials());

  add_bos_ = config.add_bos_token.value_or(true);
  add_eos_ = config.add_eos_token.value_or(false);
  KIVI_ASSIGN_OR_RETURN(bos_,
                        resolve(config.bos, "bos_token", processor_.bos_id(), vocabulary_, place));
  KIVI_ASSIGN_OR_RETURN(eos_,
                        resolve(config.eos, "eos_token", processor_.eos_id(), vocabulary_, place));
  return ok_status();
}

void SentencePieceTokenizer::choose_prefix(const TokenizerConfig& config) {
  const bool legacy = legacy_ = config.legacy.value_or(true);
  const bool wanted = legacy ? spec_.add_dummy_prefix : config.add_prefix_space.value_or(true);
  if (!wanted) {
    prefix_ = Prefix::none;
  } else if (legacy && (spec_.remove_extra_whitespaces || spec_.treat_whitespace_as_suffix)) {
    prefix_ = Prefix::library;  // it takes the text's own leading spaces away first
  } else {
    prefix_ = Prefix::here;
  }
}

Status SentencePieceTokenizer::find_specials() {
  std::vector<AddedTokenRule> rules;
  for (int32_t id = 0; id < vocabulary_.size(); ++id) {
    if (!vocabulary_.is_special(id) || vocabulary_.name(id).empty()) continue;
    rules.push_back({.id = id, .content = vocabulary_.name(id), .special = true});
  }
  KIVI_ASSIGN_OR_RETURN(specials_, AddedTokens::load(rules));
  return ok_status();
}

void SentencePieceTokenizer::fill_vocabulary() {
  may_cut_before_spaces_ = spec_.model_type == 2 && !spec_.has_charsmap &&
                           !spec_.remove_extra_whitespaces && spec_.escape_whitespaces &&
                           prefix_ != Prefix::library;
  for (int id = 0; id < processor_.GetPieceSize(); ++id) {
    const std::string& name = processor_.IdToPiece(id);
    if (processor_.IsControl(id) || processor_.IsUnknown(id)) {
      vocabulary_.set(id, name, "", /*special=*/true);
      continue;
    }
    longest_token_bytes_ = std::max(longest_token_bytes_, int(name.size()));
    const auto byte = processor_.IsByte(id) ? byte_of_piece(name) : std::nullopt;
    vocabulary_.set(id, name, byte ? *byte : with_replaced(name, kSpace, " "), /*special=*/false);
    for (size_t at = name.find(kSpace); at != std::string::npos; at = name.find(kSpace, at + 1)) {
      const bool after_space =
          at >= kSpace.size() && name.compare(at - kSpace.size(), kSpace.size(), kSpace) == 0;
      if (at > 0 && !after_space) may_cut_before_spaces_ = false;
    }
  }
}

std::vector<int32_t> SentencePieceTokenizer::ids_of(std::string_view text, bool add_special_tokens,
                                                    SpecialText special, bool at_start) const {
  std::string replaced;
  text = as_valid_utf8(text, replaced);
  std::vector<AddedTokens::Part> parts;
  RegexScratch scratch;
  specials_->split(text, special, scratch, parts);
  std::vector<int32_t> ids;
  if (add_special_tokens && add_bos_ && bos_) ids.push_back(*bos_);
  std::string whole;
  for (const AddedTokens::Part& part : parts) {
    if (part.id) {
      ids.push_back(*part.id);
      continue;
    }
    // What stands between special tokens is a text of its own in Hugging Face's legacy tokenizer;
    // otherwise only what nothing stands before has the prefix.
    const bool prefixed =
        prefix_ == Prefix::here && (legacy_ || (at_start && part.span.begin == 0));
    whole = prefixed ? kSpace : "";
    whole.append(text, part.span.begin, part.span.end - part.span.begin);
    encode_piecewise(whole, ids);
  }
  if (add_special_tokens && add_eos_ && eos_) ids.push_back(*eos_);
  return ids;
}

// Where the word at the start of `text` ends: at the first space after a character that is none,
// written either way.
size_t word_end(std::string_view text) {
  const auto space_bytes = [&](size_t at) {
    if (text[at] == ' ') return size_t(1);
    return text.substr(at, kSpace.size()) == kSpace ? kSpace.size() : 0;
  };
  size_t at = 0;
  while (at < text.size() && space_bytes(at) > 0) at += space_bytes(at);
  while (at < text.size() && space_bytes(at) == 0) ++at;
  return at;
}

// The library keeps one queue of merges for all it is given, and texts repeat their words: cut into
// words, each of which is encoded once, 1 MB of English takes a twentieth of the time.
void SentencePieceTokenizer::encode_piecewise(std::string_view text,
                                              std::vector<int32_t>& ids) const {
  constexpr size_t kCachedBytes = 64, kCachedWords = 1 << 16;
  std::unordered_map<std::string, std::vector<int>, Vocabulary::Hash, std::equal_to<>> cache;
  std::vector<int> piece_ids;
  while (!text.empty()) {
    const size_t end = may_cut_before_spaces_ ? word_end(text) : text.size();
    const std::string_view word = text.substr(0, end);
    text.remove_prefix(end);
    if (const auto known = cache.find(word); known != cache.end()) {
      ids.insert(ids.end(), known->second.begin(), known->second.end());
      continue;
    }
    // Encode reports no errors but those of a processor that is not loaded.
    const auto status = processor_.Encode(absl::string_view(word.data(), word.size()), &piece_ids);
    KIVI_VERIFY(status.ok());
    ids.insert(ids.end(), piece_ids.begin(), piece_ids.end());
    if (word.size() <= kCachedBytes && cache.size() < kCachedWords) cache.emplace(word, piece_ids);
  }
}

}  // namespace

Result<std::unique_ptr<Tokenizer>> load_sentencepiece_tokenizer(const std::string& folder) {
  const std::string path = folder + "/tokenizer.model";
  KIVI_ASSIGN_OR_RETURN(std::string model, read_text_file(path, kMaxJsonFileBytes));
  if (model.empty()) return bad_model(path, "is empty");
  KIVI_ASSIGN_OR_RETURN(const TokenizerConfig config, read_tokenizer_config(folder));
  return make_sentencepiece_tokenizer(path, std::move(model), config);
}

Result<std::unique_ptr<Tokenizer>> make_sentencepiece_tokenizer(const std::string& place,
                                                                std::string model,
                                                                const TokenizerConfig& config) {
  auto tokenizer = std::make_unique<SentencePieceTokenizer>();
  KIVI_RETURN_IF_ERROR(tokenizer->load(place, std::move(model), config));
  return std::unique_ptr<Tokenizer>(std::move(tokenizer));
}

}  // namespace kivi
