// SPDX-License-Identifier: Apache-2.0
#include "engine/serving/chat_template_source.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/json_file.h"
#include "engine/limits.h"
#include "engine/model/files/gguf.h"

namespace kivi {
namespace {

using nlohmann::json;
using Found = std::optional<ChatTemplateSource>;

Error bad(std::string message, ErrorCode code = ErrorCode::invalid) {
  return Error{code, std::move(message), "chat_template"};
}

bool is_text(const json& object, const char* key) {
  return object.is_object() && object.contains(key) && object[key].is_string();
}

// Of several named templates the one for plain chats.
Result<Found> pick_default(const json& list, const std::string& path) {
  for (const json& entry : list) {
    if (!is_text(entry, "name") || !is_text(entry, "template"))
      return bad(
          fmt::format("{}: chat_template is a list, must hold objects with a name and a "
                      "template, both strings",
                      path));
    if (entry["name"] == "default") return Found({entry["template"].get<std::string>(), path});
  }
  return bad(fmt::format("{}: chat_template is a list without a template named \"default\"", path));
}

Result<Found> read_from_json(const std::string& path) {
  const Result<json> file = read_json_file(path);
  if (!file.ok()) {
    if (file.error().code == ErrorCode::not_found) return Found();
    return bad(file.error().message, file.error().code);
  }
  if (!file->is_object() || !file->contains("chat_template")) return Found();
  const json& value = (*file)["chat_template"];
  if (value.is_null()) return Found();
  if (value.is_string()) return Found({value.get<std::string>(), path});
  if (value.is_array()) return pick_default(value, path);
  return bad(fmt::format("{}: chat_template is of type {}, must be a string or a list", path,
                         value.type_name()));
}

Result<Found> read_from_file(const std::string& path, bool must_exist) {
  Result<std::string> text = read_text_file(path, kMaxChatTemplateBytes);
  if (text.ok()) return Found({std::move(*text), path});
  if (!must_exist && text.error().code == ErrorCode::not_found) return Found();
  return bad(text.error().message, text.error().code);
}

Result<Found> read_from_gguf(const std::string& path) {
  constexpr const char* kKey = "tokenizer.chat_template";
  KIVI_ASSIGN_OR_RETURN(const GgufFile file, GgufFile::open(path));
  auto text = file.header.string(kKey);
  if (!text.ok()) return bad(text.error().message);
  if (!*text) return Found();
  if ((*text)->size() > size_t(kMaxChatTemplateBytes))
    return bad(fmt::format("{}: {} is {} bytes, must be at most {}", path, kKey, (*text)->size(),
                           kMaxChatTemplateBytes));
  return Found({std::move(**text), fmt::format("{} ({})", path, kKey)});
}

}  // namespace

Result<Found> find_chat_template(const std::string& model, const std::string& wanted) {
  if (wanted == "none") return Found();
  if (!wanted.empty()) {
    const Result<Found> found = read_from_file(wanted, /*must_exist=*/true);
    if (found.ok()) return found;
    return bad(
        fmt::format("chat_template is \"{}\", must be a file of at most {} bytes that can be "
                    "read, or none: {}",
                    wanted, kMaxChatTemplateBytes, found.error().message),
        found.error().code);
  }
  if (is_gguf_path(model)) return read_from_gguf(model);
  KIVI_ASSIGN_OR_RETURN(Found found, read_from_file(model + "/chat_template.jinja", false));
  for (const char* name : {"/tokenizer_config.json", "/chat_template.json"}) {
    if (found) break;
    KIVI_ASSIGN_OR_RETURN(found, read_from_json(model + name));
  }
  return found;
}

}  // namespace kivi
