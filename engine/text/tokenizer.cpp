// SPDX-License-Identifier: Apache-2.0
#include "engine/text/tokenizer.h"

#include <fmt/format.h>

#include <filesystem>

#include "engine/model/files/gguf.h"
#include "engine/text/bpe_tokenizer.h"
#include "engine/text/detokenizer.h"
#include "engine/text/gguf_tokenizer.h"
#include "engine/text/sentencepiece_tokenizer.h"

namespace kivi {

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  std::string text;
  Detokenizer detokenizer(*this, skip_special);
  for (int32_t id : ids) detokenizer.push(id, text);
  detokenizer.flush(text);
  return text;
}

Result<std::unique_ptr<Tokenizer>> load_tokenizer(const std::string& path) {
  if (is_gguf_path(path)) {
    KIVI_ASSIGN_OR_RETURN(const GgufFile file, GgufFile::open(path));
    return make_gguf_tokenizer(file.header);
  }
  const std::string& folder = path;
  std::error_code failed;
  if (std::filesystem::exists(folder + "/tokenizer.model", failed)) {
    return load_sentencepiece_tokenizer(folder);
  }
  if (std::filesystem::exists(folder + "/tokenizer.json", failed)) {
    return load_bpe_tokenizer(folder);
  }
  return Error{
      ErrorCode::not_found,
      fmt::format(
          "{}: neither tokenizer.model (SentencePiece) nor tokenizer.json (BPE) in this folder",
          folder),
      "tokenizer"};
}

}  // namespace kivi
