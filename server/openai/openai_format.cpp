// SPDX-License-Identifier: Apache-2.0
// response_format, structured_outputs and their older names -> OutputFormat (openai_fields.h).
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

#include "server/openai/openai_fields.h"

namespace kivi {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr size_t kChoicesMax = 4096;

Error wrong_format(const std::string& field, const std::string& message) {
  return Error{ErrorCode::invalid, field + " " + message, field};
}

Error unsupported(const std::string& field) {
  return Error{ErrorCode::unsupported, field + " is not supported by this build", field};
}

// A request's body as text, and as parsed.
struct Document {
  std::string_view body;
  const json& value;
};

// A schema: an object, or a string that holds one. `place`: its path in the body.
Result<OutputFormat> schema_format(const Document& document, const json& value,
                                   std::initializer_list<const char*> place,
                                   const std::string& field) {
  OutputFormat format{OutputFormat::Kind::json_schema, "", {}, field};
  if (value.is_string()) {
    format.text = value.get<std::string>();
    return format;
  }
  if (!value.is_object() && !value.is_boolean())
    return wrong_format(field, fmt::format("is {}, must be a JSON Schema", describe(value)));
  // The whole body is parsed again, with the order of its members.
  KIVI_RETURN_IF_ERROR(check_object_sizes(document.value));
  const OwnedJson<ordered_json> owned(ordered_json::parse(document.body));
  const ordered_json* ordered = &*owned;
  for (const char* name : place) ordered = &(*ordered)[name];
  format.text = ordered->dump();
  return format;
}

Result<OutputFormat> text_format(OutputFormat::Kind kind, const json& value,
                                 const std::string& field) {
  if (!value.is_string() || value.get_ref<const std::string&>().empty())
    return wrong_format(field,
                        fmt::format("is {}, must be a text that is not empty", describe(value)));
  return OutputFormat{kind, value.get<std::string>(), {}, field};
}

Result<OutputFormat> choice_format(const json& value, const std::string& field) {
  OutputFormat format{OutputFormat::Kind::choice, "", {}, field};
  if (!value.is_array() || value.empty() || value.size() > kChoicesMax ||
      !std::ranges::all_of(value, [](const json& c) { return c.is_string() && c != ""; }))
    return wrong_format(field,
                        fmt::format("is {}, must be a list of 1 to {} texts that are not empty",
                                    describe(value), kChoicesMax));
  format.choices = value.get<std::vector<std::string>>();
  return format;
}

Result<std::optional<OutputFormat>> response_format(const Document& document, const json& value) {
  const std::string field = "response_format";
  const auto type = value.is_object() ? value.find("type") : value.end();
  if (!value.is_object() || type == value.end() || !type->is_string())
    return wrong_format(field,
                        fmt::format("is {}, must be an object with a type", describe(value)));
  if (*type == "text") return std::optional<OutputFormat>();
  if (*type == "json_object")
    return std::optional(OutputFormat{OutputFormat::Kind::json_object, "", {}, field});
  if (*type == "structural_tag")
    return Error{ErrorCode::unsupported, "response_format.type structural_tag is not supported",
                 field};
  if (*type != "json_schema")
    return wrong_format(
        field,
        fmt::format("has the type {}, must be text, json_object or json_schema", describe(*type)));
  const auto named = value.find("json_schema");
  if (named == value.end() || !named->is_object() || !named->contains("schema"))
    return wrong_format(field, "of type json_schema must have json_schema.schema");
  const auto strict = named->find("strict");
  if (strict != named->end() && !strict->is_boolean() && !strict->is_null())
    return wrong_format(
        field, fmt::format("has json_schema.strict {}, must be a boolean", describe(*strict)));
  KIVI_ASSIGN_OR_RETURN(OutputFormat format,
                        schema_format(document, (*named)["schema"],
                                      {"response_format", "json_schema", "schema"}, field));
  return std::optional(std::move(format));
}

Result<std::optional<OutputFormat>> structured_outputs(const Document& document,
                                                       const json& value) {
  const std::string field = "structured_outputs";
  if (!value.is_object())
    return wrong_format(field, fmt::format("is {}, must be an object", describe(value)));
  std::optional<OutputFormat> format;
  for (const auto& [name, part] : value.items()) {
    if (part.is_null() || part == false) continue;
    const std::string at = fmt::format("{}.{}", field, name);
    if (format) return wrong_format(field, "has several constraints, must have one");
    if (name == "json") {
      KIVI_ASSIGN_OR_RETURN(format,
                            schema_format(document, part, {"structured_outputs", "json"}, at));
    } else if (name == "regex" || name == "grammar") {
      KIVI_ASSIGN_OR_RETURN(format, text_format(name == "regex" ? OutputFormat::Kind::regex
                                                                : OutputFormat::Kind::grammar,
                                                part, at));
    } else if (name == "choice") {
      KIVI_ASSIGN_OR_RETURN(format, choice_format(part, at));
    } else if (name == "json_object") {
      if (part != true)
        return wrong_format(at, fmt::format("is {}, must be true or false", describe(part)));
      format = OutputFormat{OutputFormat::Kind::json_object, "", {}, at};
    } else {
      return unsupported(at);
    }
  }
  if (!format) return wrong_format(field, "must have json, regex, choice, grammar or json_object");
  return format;
}

}  // namespace

// Objects that keep their order look members up one by one.
Status check_object_sizes(const json& value) {
  if (value.is_object() && value.size() > size_t(kMaxChatObjectFields))
    return Error{ErrorCode::invalid, fmt::format("an object has {} fields, must have at most {}",
                                                 value.size(), kMaxChatObjectFields)};
  if (!value.is_structured()) return ok_status();
  for (const json& item : value) KIVI_RETURN_IF_ERROR(check_object_sizes(item));
  return ok_status();
}

Result<std::optional<OutputFormat>> parse_format(std::string_view body, JsonFields& fields) {
  const Document document{body, fields.object()};
  std::optional<OutputFormat> format;
  std::string from;
  const auto take = [&](const char* name, auto&& read) -> Status {
    const json* value = fields.raw(name);
    if (value == nullptr) return ok_status();
    Result<std::optional<OutputFormat>> next = read(*value);
    if (!next.ok()) return next.error();
    if (!*next) return ok_status();
    if (format)
      return wrong_format(name, fmt::format("and {} are both given, must be one of them", from));
    format = std::move(*next);
    from = name;
    return ok_status();
  };
  using Read = Result<std::optional<OutputFormat>>;
  const auto some = [](Result<OutputFormat> made) -> Read {
    if (!made.ok()) return made.error();
    return std::optional(std::move(*made));
  };
  KIVI_RETURN_IF_ERROR(
      take("response_format", [&](const json& v) { return response_format(document, v); }));
  KIVI_RETURN_IF_ERROR(
      take("structured_outputs", [&](const json& v) { return structured_outputs(document, v); }));
  KIVI_RETURN_IF_ERROR(take("guided_json", [&](const json& v) {
    return some(schema_format(document, v, {"guided_json"}, "guided_json"));
  }));
  KIVI_RETURN_IF_ERROR(take("guided_regex", [&](const json& v) {
    return some(text_format(OutputFormat::Kind::regex, v, "guided_regex"));
  }));
  KIVI_RETURN_IF_ERROR(take(
      "guided_choice", [&](const json& v) { return some(choice_format(v, "guided_choice")); }));
  KIVI_RETURN_IF_ERROR(take("guided_grammar", [&](const json& v) {
    return some(text_format(OutputFormat::Kind::grammar, v, "guided_grammar"));
  }));
  refuse_fields(fields, {"guided_whitespace_pattern", "guided_decoding_backend"});
  KIVI_RETURN_IF_ERROR(fields.status());
  return format;
}

}  // namespace kivi
