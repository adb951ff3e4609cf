// SPDX-License-Identifier: Apache-2.0
#include "engine/text/tokenizer_json.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace kivi {

using nlohmann::json;

TokenizerPart::TokenizerPart(std::string kind, const json& object)
    : kind_(std::move(kind)), type_("null"), object_(&object) {
  if (!object.is_object()) return;
  const json& type = at("type");
  type_ = type.is_string() ? type.get<std::string>() : "without a type";
}

const json& TokenizerPart::at(const char* key) const {
  static const json null;
  if (!object_->is_object()) return null;
  const auto it = object_->find(key);
  return it == object_->end() ? null : *it;
}

Status TokenizerPart::allow(std::initializer_list<std::string_view> keys) const {
  if (!object_->is_object()) return unsupported("");
  for (const auto& [key, value] : object_->items()) {
    if (key == "type" || value.is_null()) continue;
    if (std::find(keys.begin(), keys.end(), key) == keys.end())
      return unsupported(fmt::format("with {}", key));
  }
  return ok_status();
}

std::string TokenizerPart::text(const char* key) const {
  const json& value = at(key);
  return value.is_string() ? value.get<std::string>() : "";
}

bool TokenizerPart::flag(const char* key, bool otherwise) const {
  const json& value = at(key);
  return value.is_boolean() ? value.get<bool>() : otherwise;
}

Result<const json*> TokenizerPart::list(const char* key) const {
  const json& value = at(key);
  if (!value.is_array()) return unsupported(fmt::format("without {}", key));
  return &value;
}

std::string TokenizerPart::pattern_string() const {
  const json& pattern = at("pattern");
  if (!pattern.is_object() || pattern.size() != 1) return "";
  const auto it = pattern.find("String");
  return it != pattern.end() && it->is_string() ? it->get<std::string>() : "";
}

Error TokenizerPart::unsupported(const std::string& what) const {
  return Error{
      ErrorCode::unsupported,
      fmt::format("{} {}{}{} is not supported", kind_, type_, what.empty() ? "" : " ", what),
      "tokenizer"};
}

}  // namespace kivi
