// SPDX-License-Identifier: Apache-2.0
// GET /openapi.json: the HTTP API in OpenAPI 3.1. The fields of requests are those that the readers
// ask for (FieldRecorder), and the paths are those of the route table.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/version.h"
#include "server/http/http_routes.h"
#include "server/openai/embeddings_api.h"
#include "server/openai/field_docs.h"
#include "server/openai/field_recorder.h"
#include "server/openai/messages_api.h"
#include "server/openai/openai_api.h"
#include "server/openai/responses_api.h"

namespace kivi {
namespace {

using nlohmann::ordered_json;

// How the request of a path is read.
enum class Body {
  none,
  unread,
  completion,
  chat,
  tokenize,
  detokenize,
  messages,
  count_tokens,
  responses,
  embeddings,
  score,
  rerank
};

struct PathDoc {
  std::string_view path, summary;
  Body body = Body::none;
  std::string_view required = "";  // a field of the body
};

constexpr PathDoc kPaths[] = {
    {"/", "A page to talk to the model"},
    {"/playground.css", "A file of the page"},
    {"/playground.js", "A file of the page"},
    {"/docs", "A page that shows this document"},
    {"/docs.js", "A file of the page"},
    {"/openapi.json", "This document"},
    {"/health", "200 if the server can serve"},
    {"/health/ready", "200 if the server can serve"},
    {"/health/live", "200 while the process runs"},
    {"/ping", "200 if the server can serve"},
    {"/version", "Names the build"},
    {"/metrics", "Metrics in Prometheus's text format"},
    {"/load", "The requests that run and wait"},
    {"/server_info", "Build, model, cache and load"},
    {"/v1/models", "Lists the names of the served model"},
    {"/v1/models/*", "Describes the served model"},
    {"/v1/load_lora_adapter", "Refused: there are no adapters", Body::unread},
    {"/v1/unload_lora_adapter", "Refused: there are no adapters", Body::unread},
    {"/tokenizer_info", "Describes the tokenizer"},
    {"/v1/tokenizer_info", "Describes the tokenizer"},
    {"/tokenize", "Turns text or a chat into token ids", Body::tokenize},
    {"/v1/tokenize", "Turns text or a chat into token ids", Body::tokenize},
    {"/detokenize", "Turns token ids into text", Body::detokenize, "tokens"},
    {"/v1/detokenize", "Turns token ids into text", Body::detokenize, "tokens"},
    {"/v1/completions", "Continues a prompt", Body::completion, "prompt"},
    {"/v1/completions/render", "The token ids of a prompt", Body::completion, "prompt"},
    {"/v1/chat/completions", "Continues a chat", Body::chat, "messages"},
    {"/v1/chat/completions/render", "The token ids of a chat", Body::chat, "messages"},
    {"/v1/embeddings", "Turns texts into vectors", Body::embeddings, "input"},
    {"/score", "Compares texts by the cosine of their embeddings", Body::score},
    {"/v1/score", "Compares texts by the cosine of their embeddings", Body::score},
    {"/rerank", "Orders documents by their likeness to a query", Body::rerank, "query"},
    {"/v1/rerank", "Orders documents by their likeness to a query", Body::rerank, "query"},
    {"/v2/rerank", "Orders documents by their likeness to a query", Body::rerank, "query"},
    {"/v1/responses", "Continues a chat in the dialect of responses", Body::responses, "input"},
    {"/v1/messages", "Continues a chat in Anthropic's dialect", Body::messages, "messages"},
    {"/v1/messages/count_tokens", "Counts the tokens of a chat", Body::count_tokens, "messages"},
};

const PathDoc* find_path_doc(std::string_view path) {
  for (const PathDoc& doc : kPaths)
    if (doc.path == path) return &doc;
  return nullptr;
}

// Reads the smallest request of a kind and returns what its reader asked for.
FieldRecorder record(Body body) {
  FieldRecorder recorder;
  ApiRules rules;
  rules.model_name = "model";
  rules.vocab_size = std::numeric_limits<int>::max();
  rules.chat_template = "reasoning_effort";  // as of a template that knows it
  rules.recorder = &recorder;
  constexpr std::string_view kPrompt = R"({"prompt":"x"})";
  constexpr std::string_view kChat = R"({"messages":[{"role":"user","content":"x"}]})";
  switch (body) {
    case Body::none:
    case Body::unread:
      break;
    case Body::completion:
      static_cast<void>(parse_completion(kPrompt, rules).ok());
      break;
    case Body::chat:
      static_cast<void>(parse_chat(kChat, rules).ok());
      break;
    case Body::tokenize:
      static_cast<void>(parse_tokenize(kPrompt, rules).ok());
      static_cast<void>(parse_tokenize(kChat, rules).ok());
      break;
    case Body::detokenize:
      static_cast<void>(parse_detokenize(R"({"tokens":[1]})", rules).ok());
      break;
    case Body::messages:
      static_cast<void>(
          parse_messages(R"({"max_tokens":1,"messages":[{"role":"user","content":"x"}]})", rules)
              .ok());
      break;
    case Body::count_tokens:
      static_cast<void>(parse_count_tokens(kChat, rules).ok());
      break;
    case Body::responses:
      static_cast<void>(parse_responses(R"({"input":"x"})", rules).ok());
      break;
    case Body::embeddings:
      static_cast<void>(parse_embeddings(R"({"input":"x"})", rules).ok());
      break;
    case Body::score:
      static_cast<void>(parse_score(R"({"text_1":"x","text_2":"x"})", rules).ok());
      break;
    case Body::rerank:
      static_cast<void>(parse_rerank(R"({"query":"x","documents":["x"]})", rules).ok());
      break;
  }
  return recorder;
}

ordered_json shape_of(const RecordedField& field) {
  switch (field.kind) {
    case FieldKind::boolean:
      return {{"type", "boolean"}};
    case FieldKind::integer:
      return {{"type", "integer"}, {"minimum", field.lowest}, {"maximum", field.highest}};
    case FieldKind::number:
      return {{"type", "number"}};
    case FieldKind::text:
      return {{"type", "string"}};
    case FieldKind::integers:
      return {{"type", "array"}, {"items", {{"type", "integer"}}}};
    case FieldKind::texts:
      return {
          {"anyOf", {{{"type", "string"}}, {{"type", "array"}, {"items", {{"type", "string"}}}}}}};
    case FieldKind::other:
      break;
  }
  return ordered_json::object();
}

// `chat`: the fields of a chat, whose reader judges what the other dialects hand on.
ordered_json property_of(RecordedField field, std::string_view path, const FieldRecorder& chat) {
  if (field.kind == FieldKind::other)
    for (const RecordedField& known : chat.fields())
      if (known.name == field.name) field = known;
  const FieldDoc* doc = find_field_doc(field.name, path);
  ordered_json property =
      doc != nullptr && !doc->schema.empty() ? ordered_json::parse(doc->schema) : shape_of(field);
  if (doc != nullptr) property["description"] = std::string(doc->text) + ".";
  return property;
}

ordered_json schema_of(const PathDoc& doc, const FieldRecorder& chat) {
  ordered_json properties = ordered_json::object();
  const FieldRecorder recorder = record(doc.body);
  for (const RecordedField& field : recorder.fields())
    if (!recorder.refused(field.name)) properties[field.name] = property_of(field, doc.path, chat);
  ordered_json schema{{"type", "object"}, {"properties", std::move(properties)}};
  if (!doc.required.empty()) schema["required"] = {doc.required};
  if (doc.body == Body::messages) schema["required"].push_back("max_tokens");
  if (doc.body == Body::rerank) schema["required"].push_back("documents");
  return schema;
}

ordered_json operation_of(const Route& route, const PathDoc& doc, const FieldRecorder& chat) {
  ordered_json operation{{"summary", doc.summary}};
  if (route.path.back() == '*')
    operation["parameters"] = {
        {{"name", "id"}, {"in", "path"}, {"required", true}, {"schema", {{"type", "string"}}}}};
  if (doc.body != Body::none)
    operation["requestBody"] = {
        {"required", true},
        {"content", {{"application/json", {{"schema", schema_of(doc, chat)}}}}}};
  const char* error = route.dialect == Dialect::anthropic ? "#/components/schemas/MessagesError"
                                                          : "#/components/schemas/Error";
  operation["responses"] = {
      {"200", {{"description", "The answer."}}},
      {"default",
       {{"description", "What was wrong."},
        {"content", {{"application/json", {{"schema", {{"$ref", error}}}}}}}}}};
  if (route.access == Access::open) operation["security"] = ordered_json::array();
  return operation;
}

ordered_json components() {
  const ordered_json text{{"type", "string"}};
  const ordered_json text_or_null{{"type", {"string", "null"}}};
  const ordered_json error{
      {"type", "object"},
      {"required", {"message", "type", "param", "code"}},
      {"properties", {{"message", text}, {"type", text}, {"param", text_or_null}, {"code", text}}}};
  const ordered_json messages_error{{"type", "object"},
                                    {"required", {"type", "message"}},
                                    {"properties", {{"type", text}, {"message", text}}}};
  return {{"securitySchemes",
           {{"key", {{"type", "http"}, {"scheme", "bearer"}}},
            {"x_api_key", {{"type", "apiKey"}, {"in", "header"}, {"name", "x-api-key"}}}}},
          {"schemas",
           {{"Error",
             {{"type", "object"}, {"required", {"error"}}, {"properties", {{"error", error}}}}},
            {"MessagesError",
             {{"type", "object"},
              {"required", {"type", "error"}},
              {"properties", {{"type", {{"const", "error"}}}, {"error", messages_error}}}}}}}};
}

std::string make_document() {
  const FieldRecorder chat = record(Body::chat);
  ordered_json paths = ordered_json::object();
  for (const Route& route : all_routes()) {
    const PathDoc* doc = find_path_doc(route.path);
    if (doc == nullptr) continue;  // a test finds such a path
    std::string path(route.path);
    if (path.back() == '*') path = path.substr(0, path.size() - 1) + "{id}";
    paths[path][route.method == "GET" ? "get" : "post"] = operation_of(route, *doc, chat);
  }
  return ordered_json{
      {"openapi", "3.1.0"},
      {"info",
       {{"title", "Kivi Server"},
        {"version", KIVI_VERSION},
        {"description",
         "OpenAI's completions, chats and responses, Anthropic's messages, and vLLM's additions. "
         "Unknown fields are ignored unless the server runs with --strict-params."}}},
      {"paths", std::move(paths)},
      {"security", {{{"key", ordered_json::array()}}, {{"x_api_key", ordered_json::array()}}}},
      {"components", components()}}
      .dump();
}

}  // namespace

HttpReply handle_openapi(HttpContext&, const HttpRequest&) {
  static const std::string document = make_document();  // always the same
  return json_reply(document);
}

}  // namespace kivi
