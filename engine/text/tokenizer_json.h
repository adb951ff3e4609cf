// SPDX-License-Identifier: Apache-2.0
// TokenizerPart: one object of a tokenizer.json (a normalizer, a pre-tokenizer, ...), read
// strictly: a key that is not known is an error, since whatever it means would be skipped.
#pragma once

#include <initializer_list>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "base/result.h"

namespace kivi {

// Borrows the object.
class TokenizerPart {
 public:
  // `kind` is how errors call it: "normalizer".
  TokenizerPart(std::string kind, const nlohmann::json& object);

  // "type"; "null" where it is no object, "without a type" where it has none.
  const std::string& type() const { return type_; }

  // Only these keys (and "type") may be there, unless their value is null.
  Status allow(std::initializer_list<std::string_view> keys) const;

  // A missing key reads as null, as "", as `otherwise`.
  const nlohmann::json& at(const char* key) const;
  std::string text(const char* key) const;
  bool flag(const char* key, bool otherwise) const;
  // Error unsupported where it is no list. Never null.
  Result<const nlohmann::json*> list(const char* key) const;
  // {"pattern": {"String": s}}: s; else "".
  std::string pattern_string() const;

  // "<kind> <type> <what> is not supported".
  Error unsupported(const std::string& what) const;

 private:
  std::string kind_, type_;
  const nlohmann::json* object_;
};

}  // namespace kivi
