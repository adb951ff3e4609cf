#include "engine/tokenizer.h"

#include <fmt/format.h>

#include <filesystem>

#include "engine/detokenizer.h"
#include "engine/sentencepiece_tokenizer.h"

namespace kivi {

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  std::string text;
  Detokenizer detokenizer(*this, skip_special);
  for (int32_t id : ids) detokenizer.push(id, text);
  detokenizer.flush(text);
  return text;
}

Result<std::unique_ptr<Tokenizer>> load_tokenizer(const std::string& folder) {
  std::error_code failed;
  if (std::filesystem::exists(folder + "/tokenizer.model", failed)) {
    return load_sentencepiece_tokenizer(folder);
  }
  if (std::filesystem::exists(folder + "/tokenizer.json", failed)) {
    return Error{ErrorCode::unsupported,
                 fmt::format("{}/tokenizer.json: byte-level BPE is not built yet; expected a "
                             "tokenizer.model (SentencePiece)",
                             folder),
                 "tokenizer"};
  }
  return Error{ErrorCode::not_found,
               fmt::format("{}: no tokenizer.model (SentencePiece) in this folder", folder),
               "tokenizer"};
}

}  // namespace kivi
