// SPDX-License-Identifier: Apache-2.0
// Vocabulary: what each token id is called and which bytes it stands for. Filled at load, then
// immutable; shared by all kinds of tokenizers.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace kivi {

class Vocabulary {
 public:
  // Defines `id` (>= 0; grows the table). A name that is given twice stays with its first id.
  void set(int32_t id, std::string name, std::string bytes, bool special);
  void mark_special(int32_t id);

  // As Tokenizer says. Ids outside give an empty string.
  const std::string& bytes(int32_t id, bool skip_special) const;
  const std::string& name(int32_t id) const;
  bool is_special(int32_t id) const;
  std::optional<int32_t> find(std::string_view name) const;
  int size() const { return int(tokens_.size()); }

  struct Hash {  // so that find() makes no copy of the name
    using is_transparent = void;
    size_t operator()(std::string_view s) const { return std::hash<std::string_view>{}(s); }
  };

 private:
  struct Token {
    std::string name, bytes;
    bool special = false;
  };
  std::vector<Token> tokens_;
  std::unordered_map<std::string, int32_t, Hash, std::equal_to<>> ids_;
};

}  // namespace kivi
