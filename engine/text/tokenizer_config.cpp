// SPDX-License-Identifier: Apache-2.0
#include "engine/text/tokenizer_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "base/json_file.h"

namespace kivi {
namespace {

using nlohmann::json;

Error bad(const std::string& path, const std::string& what) {
  return Error{ErrorCode::invalid, fmt::format("{}: {}", path, what), "tokenizer"};
}

// A token is written as a string, as an object with "content", or as null.
Status read_token(const json& object, const char* key, const std::string& path, NamedToken& out) {
  const auto it = object.find(key);
  if (it == object.end()) return ok_status();
  const json* content = &*it;
  if (it->is_object() && it->contains("content")) content = &(*it)["content"];
  if (!content->is_string() && !content->is_null()) {
    return bad(path,
               fmt::format("{} is neither a string, nor an object with content, nor null", key));
  }
  out.mentioned = true;
  out.name.reset();
  if (content->is_string()) out.name = content->get<std::string>();
  return ok_status();
}

Status read_bool(const json& object, const char* key, const std::string& path,
                 std::optional<bool>& out) {
  const auto it = object.find(key);
  if (it == object.end() || it->is_null()) return ok_status();
  if (!it->is_boolean()) return bad(path, fmt::format("{} is not true or false", key));
  out = it->get<bool>();
  return ok_status();
}

// bos_token, eos_token, unk_token, pad_token, additional_special_tokens: they stand in
// tokenizer_config.json and in special_tokens_map.json.
Status read_special_tokens(const json& object, const std::string& path, TokenizerConfig& config) {
  KIVI_RETURN_IF_ERROR(read_token(object, "bos_token", path, config.bos));
  KIVI_RETURN_IF_ERROR(read_token(object, "eos_token", path, config.eos));
  KIVI_RETURN_IF_ERROR(read_token(object, "unk_token", path, config.unk));
  KIVI_RETURN_IF_ERROR(read_token(object, "pad_token", path, config.pad));
  // Transformers 5 calls the list extra_special_tokens.
  for (const char* key : {"additional_special_tokens", "extra_special_tokens"}) {
    const auto it = object.find(key);
    if (it == object.end() || !it->is_array()) continue;
    for (const json& token : *it) {
      NamedToken named;
      KIVI_RETURN_IF_ERROR(read_token(json{{key, token}}, key, path, named));
      if (named.name) config.additional_special_tokens.push_back(*named.name);
    }
  }
  return ok_status();
}

Status read_added_tokens(const json& object, const std::string& path, TokenizerConfig& config) {
  const auto it = object.find("added_tokens_decoder");
  if (it == object.end() || it->is_null()) return ok_status();
  if (!it->is_object()) return bad(path, "added_tokens_decoder is not an object");
  for (const auto& [key, token] : it->items()) {
    AddedToken added;
    const auto parsed = std::from_chars(key.data(), key.data() + key.size(), added.id);
    if (parsed.ec != std::errc() || parsed.ptr != key.data() + key.size() || added.id < 0 ||
        !token.is_object() || !token.contains("content") || !token["content"].is_string()) {
      return bad(path, fmt::format("added_tokens_decoder[\"{}\"] is not an id with an object that "
                                   "has a string content",
                                   key));
    }
    added.content = token["content"].get<std::string>();
    std::optional<bool> special;
    KIVI_RETURN_IF_ERROR(read_bool(token, "special", path, special));
    added.special = special.value_or(false);
    config.added_tokens.push_back(std::move(added));
  }
  return ok_status();
}

}  // namespace

Result<json> read_json_object(const std::string& path) {
  Result<json> value = read_json_file(path);
  if (value.ok() && !value->is_object()) return bad(path, "is not a JSON object");
  if (value.ok()) return value;
  if (value.error().code == ErrorCode::not_found) return json(nullptr);
  return Error{value.error().code, value.error().message, "tokenizer"};
}

Result<std::optional<int32_t>> find_token(const NamedToken& token, const char* key,
                                          const Vocabulary& vocabulary) {
  std::optional<int32_t> id;
  if (!token.name) return id;
  id = vocabulary.find(*token.name);
  if (id) return id;
  return Error{ErrorCode::invalid,
               fmt::format("{} \"{}\" is not in the tokenizer's vocabulary", key, *token.name),
               "tokenizer"};
}

Result<TokenizerConfig> read_tokenizer_config(const std::string& folder) {
  TokenizerConfig config;
  // The older file first: tokenizer_config.json has the last word.
  const std::string map_path = folder + "/special_tokens_map.json";
  KIVI_ASSIGN_OR_RETURN(const json map, read_json_object(map_path));
  if (!map.is_null()) KIVI_RETURN_IF_ERROR(read_special_tokens(map, map_path, config));

  const std::string path = folder + "/tokenizer_config.json";
  KIVI_ASSIGN_OR_RETURN(const json main, read_json_object(path));
  if (!main.is_null()) {
    KIVI_RETURN_IF_ERROR(read_special_tokens(main, path, config));
    KIVI_RETURN_IF_ERROR(read_added_tokens(main, path, config));
    KIVI_RETURN_IF_ERROR(read_bool(main, "add_bos_token", path, config.add_bos_token));
    KIVI_RETURN_IF_ERROR(read_bool(main, "add_eos_token", path, config.add_eos_token));
    KIVI_RETURN_IF_ERROR(read_bool(main, "add_prefix_space", path, config.add_prefix_space));
    KIVI_RETURN_IF_ERROR(read_bool(main, "legacy", path, config.legacy));
  }

  const std::string added_path = folder + "/added_tokens.json";
  KIVI_ASSIGN_OR_RETURN(const json added, read_json_object(added_path));
  if (!added.is_null()) {
    for (const auto& [content, id] : added.items()) {
      if (!id.is_number_unsigned() || id.get<uint64_t>() > INT32_MAX) {
        return bad(added_path, fmt::format("\"{}\" has no id", content));
      }
      const auto number = id.get<int32_t>();
      const bool known = std::any_of(config.added_tokens.begin(), config.added_tokens.end(),
                                     [&](const AddedToken& t) { return t.id == number; });
      if (!known) config.added_tokens.push_back({number, content, false});
    }
  }
  std::sort(config.added_tokens.begin(), config.added_tokens.end(),
            [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
  return config;
}

Status apply_added_tokens(const TokenizerConfig& config, Vocabulary& vocabulary) {
  constexpr int64_t kMaxHole = 65536;  // of all of them together
  const int64_t end = vocabulary.size() + kMaxHole + int64_t(config.added_tokens.size());
  for (const AddedToken& token : config.added_tokens) {
    if (token.id >= end) {
      return Error{ErrorCode::invalid,
                   fmt::format("added token \"{}\" has id {}, far beyond the vocabulary of {}",
                               token.content, token.id, vocabulary.size()),
                   "tokenizer"};
    }
    if (vocabulary.name(token.id) == token.content) {
      if (token.special) vocabulary.mark_special(token.id);
    } else {
      vocabulary.set(token.id, token.content, token.content, token.special);
    }
  }
  const auto mark = [&](const std::string& name) {
    if (const auto id = vocabulary.find(name)) vocabulary.mark_special(*id);
  };
  for (const NamedToken* token : {&config.bos, &config.eos, &config.unk, &config.pad}) {
    if (token->name) mark(*token->name);
  }
  for (const std::string& name : config.additional_special_tokens) mark(name);
  return ok_status();
}

}  // namespace kivi
