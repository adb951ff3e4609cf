// SPDX-License-Identifier: Apache-2.0
#include "engine/text/text_normalizer.h"

#include <fmt/format.h>
#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "engine/text/tokenizer_json.h"

namespace kivi {

using nlohmann::json;

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  size_t begin = 0;
  for (size_t at = 0; (at = text.find(from, begin)) != text.npos; begin = at + from.size()) {
    out.append(text, begin, at - begin);
    out += to;
  }
  out.append(text, begin);
  return out;
}

std::string to_nfc(std::string_view text) {
  // Below U+0300 (bytes CC 80) everything is in form C already.
  const bool plain = std::all_of(text.begin(), text.end(),
                                 [](char c) { return static_cast<unsigned char>(c) < 0xCC; });
  if (plain) return std::string(text);
  utf8proc_uint8_t* mapped = nullptr;
  const utf8proc_ssize_t bytes = utf8proc_map(
      reinterpret_cast<const utf8proc_uint8_t*>(text.data()), utf8proc_ssize_t(text.size()),
      &mapped, utf8proc_option_t(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  std::string out(bytes < 0 ? text
                            : std::string_view(reinterpret_cast<char*>(mapped), size_t(bytes)));
  std::free(mapped);
  return out;
}

Result<TextNormalizer> TextNormalizer::load(const json& description) {
  TextNormalizer loaded;
  if (!description.is_null()) KIVI_RETURN_IF_ERROR(loaded.add(description));
  return loaded;
}

Status TextNormalizer::add(const json& description) {
  const TokenizerPart part("normalizer", description);
  if (part.type() == "Sequence") {
    KIVI_RETURN_IF_ERROR(part.allow({"normalizers"}));
    KIVI_ASSIGN_OR_RETURN(const json* parts, part.list("normalizers"));
    for (const json& each : *parts) KIVI_RETURN_IF_ERROR(add(each));
    return ok_status();
  }
  if (part.type() == "NFC") {
    steps_.push_back({Kind::nfc, "", ""});
    return part.allow({});
  }
  if (part.type() == "Prepend") {
    KIVI_RETURN_IF_ERROR(part.allow({"prepend"}));
    steps_.push_back({Kind::prepend, "", part.text("prepend")});
    return ok_status();
  }
  if (part.type() == "Replace") {
    KIVI_RETURN_IF_ERROR(part.allow({"pattern", "content"}));
    const std::string from = part.pattern_string();
    if (from.empty()) return part.unsupported("with a pattern that is no String");
    steps_.push_back({Kind::replace, from, part.text("content")});
    return ok_status();
  }
  return part.unsupported("");
}

bool TextNormalizer::shortens() const {
  return std::any_of(steps_.begin(), steps_.end(), [](const Step& step) {
    return step.kind == Kind::nfc ||
           (step.kind == Kind::replace && step.to.size() < step.from.size());
  });
}

std::string TextNormalizer::apply(std::string_view text) const {
  std::string out(text);
  for (const Step& step : steps_) {
    if (step.kind == Kind::nfc) out = to_nfc(out);
    if (step.kind == Kind::replace) out = replace_all(out, step.from, step.to);
    if (step.kind == Kind::prepend && !out.empty()) out.insert(0, step.to);
  }
  return out;
}

}  // namespace kivi
