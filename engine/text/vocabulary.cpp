// SPDX-License-Identifier: Apache-2.0
#include "engine/text/vocabulary.h"

#include "base/verify.h"

namespace kivi {
namespace {
const std::string kNothing;
}

void Vocabulary::set(int32_t id, std::string name, std::string bytes, bool special) {
  KIVI_VERIFY(id >= 0);
  if (size_t(id) >= tokens_.size()) tokens_.resize(size_t(id) + 1);
  ids_.try_emplace(name, id);
  tokens_[size_t(id)] = {std::move(name), std::move(bytes), special};
}

void Vocabulary::mark_special(int32_t id) { tokens_.at(size_t(id)).special = true; }

const std::string& Vocabulary::bytes(int32_t id, bool skip_special) const {
  if (id < 0 || id >= size()) return kNothing;
  const Token& token = tokens_[size_t(id)];
  if (!token.special) return token.bytes;
  return skip_special ? kNothing : token.name;
}

const std::string& Vocabulary::name(int32_t id) const {
  return id < 0 || id >= size() ? kNothing : tokens_[size_t(id)].name;
}

bool Vocabulary::is_special(int32_t id) const {
  return id >= 0 && id < size() && tokens_[size_t(id)].special;
}

std::optional<int32_t> Vocabulary::find(std::string_view name) const {
  const auto it = ids_.find(name);
  if (it == ids_.end()) return std::nullopt;
  return it->second;
}

}  // namespace kivi
