// SPDX-License-Identifier: Apache-2.0
#include "engine/text/byte_tokenizer.h"

#include <fmt/format.h>

#include "engine/text/vocabulary.h"

namespace kivi {
namespace {

class ByteTokenizer final : public Tokenizer {
 public:
  explicit ByteTokenizer(int vocab_size) {
    for (int32_t id = 0; id < vocab_size; ++id) {
      std::string bytes = id < 256 ? std::string(1, char(id)) : fmt::format(" #{}", id);
      vocabulary_.set(id, id < 256 ? fmt::format("<0x{:02X}>", id) : bytes, bytes, false);
    }
  }

  std::vector<int32_t> encode(std::string_view text, bool) const override {
    std::vector<int32_t> ids;
    ids.reserve(text.size());
    for (unsigned char byte : text) ids.push_back(byte);
    return ids;
  }
  const std::string& token_bytes(int32_t id, bool skip_special) const override {
    return vocabulary_.bytes(id, skip_special);
  }
  std::string token_name(int32_t id) const override { return vocabulary_.name(id); }
  std::optional<int32_t> token_id(std::string_view name) const override {
    return vocabulary_.find(name);
  }
  bool strips_leading_space() const override { return false; }
  int vocab_size() const override { return vocabulary_.size(); }
  int longest_token_bytes() const override { return 1; }  // of a text's tokens
  std::optional<int32_t> bos_id() const override { return std::nullopt; }
  std::optional<int32_t> eos_id() const override { return std::nullopt; }
  std::string kind() const override { return "bytes (the dummy model has no tokenizer)"; }

 private:
  Vocabulary vocabulary_;
};

}  // namespace

Result<std::unique_ptr<Tokenizer>> make_byte_tokenizer(int vocab_size) {
  if (vocab_size < 256) {
    return Error{
        ErrorCode::invalid,
        fmt::format("vocab_size is {}, must be at least 256 for a tokenizer of bytes", vocab_size),
        "tokenizer"};
  }
  return std::unique_ptr<Tokenizer>(std::make_unique<ByteTokenizer>(vocab_size));
}

}  // namespace kivi
