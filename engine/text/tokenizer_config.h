// SPDX-License-Identifier: Apache-2.0
// TokenizerConfig: what the JSON files beside a tokenizer's model say about it
// (tokenizer_config.json, special_tokens_map.json, added_tokens.json of Hugging Face). What a file
// does not say is absent here; the tokenizer knows its own defaults.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "engine/text/vocabulary.h"

namespace kivi {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool special = false;
};

// A token that a file names, says not to exist (null), or does not mention.
struct NamedToken {
  bool mentioned = false;
  std::optional<std::string> name;
};

struct TokenizerConfig {
  std::optional<bool> add_bos_token, add_eos_token, add_prefix_space, legacy;
  NamedToken bos, eos, unk, pad;
  std::vector<std::string> additional_special_tokens;
  std::vector<AddedToken> added_tokens;  // ascending ids
};

// Reads what is there of the three files; none of them has to be. Errors name the file and the key.
Result<TokenizerConfig> read_tokenizer_config(const std::string& folder);

// The JSON object in a file; null where there is no such file.
Result<nlohmann::json> read_json_object(const std::string& path);

// The id of the token that a file names; none where it names none. A name that is not in the
// vocabulary is an error that names `key`.
Result<std::optional<int32_t>> find_token(const NamedToken& token, const char* key,
                                          const Vocabulary& vocabulary);

// Puts the added tokens into `vocabulary` and marks the special ones. An added token whose id would
// leave a hole of more than 65,536 ids is an error.
Status apply_added_tokens(const TokenizerConfig& config, Vocabulary& vocabulary);

}  // namespace kivi
