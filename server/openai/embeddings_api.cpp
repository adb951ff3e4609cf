// SPDX-License-Identifier: Apache-2.0
#include "server/openai/embeddings_api.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <numeric>
#include <span>
#include <utility>

#include "base/base64.h"
#include "engine/limits.h"
#include "server/json_writer.h"
#include "server/openai/chat_builder.h"
#include "server/openai/openai_fields.h"
#include "server/request_id.h"

namespace kivi {
namespace {

using nlohmann::json;
using Vectors = std::vector<std::span<const float>>;

// Reads what the three endpoints have in common.
Status parse_pooled_fields(JsonFields& fields, const ApiRules& rules, CompletionCall& call) {
  CompletionRequest& r = call.request;
  KIVI_RETURN_IF_ERROR(check_model(fields, rules));
  refuse_fields(fields, {"dimensions", "embed_dtype", "endianness"});
  refuse_unless(fields, "stream", {false});
  const std::string pooling = fields.text("pooling").value_or("last");
  if (pooling != "last" && pooling != "mean")
    fields.fail("pooling", fmt::format("is {}, must be last or mean", describe(json(pooling))));
  r.pooling = pooling == "mean" ? Pooling::mean : Pooling::last;
  r.sampling.max_tokens = 0;
  r.add_special_tokens = fields.boolean("add_special_tokens", true);
  parse_prompt_limits(fields, r);
  parse_request_fields(fields, call);
  r.stop_token = rules.stop;
  return fields.status();
}

// A text, or an object with a text.
Result<std::string> document_of(const json& entry, size_t index) {
  if (entry.is_string()) return entry.get<std::string>();
  if (entry.is_object() && entry.contains("text") && entry["text"].is_string())
    return entry["text"].get<std::string>();
  return wrong(fmt::format("documents[{}] is {}, must be a string or an object with a text", index,
                           describe(entry)),
               "documents");
}

// The embeddings by prompt.
Vectors vectors_of(std::span<const TextChunk> chunks) {
  Vectors vectors(chunks.size());
  for (const TextChunk& chunk : chunks) vectors.at(size_t(chunk.choice)) = chunk.embedding;
  return vectors;
}

// Of vectors of length 1.
float cosine(std::span<const float> a, std::span<const float> b) {
  const double sum = std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
  return float(std::clamp(sum, -1.0, 1.0));
}

void append_embeddings_usage(std::string& out, const Usage& usage) {
  out += "\"usage\":{\"prompt_tokens\":";
  append_json_int(out, usage.prompt_tokens);
  out += ",\"total_tokens\":";
  append_json_int(out, usage.prompt_tokens);
  out += ",\"prompt_tokens_details\":{\"cached_tokens\":";
  append_json_int(out, usage.cached_tokens);
  out += "}}";
}

void append_base64_floats(std::string& out, std::span<const float> vector) {
  static_assert(std::endian::native == std::endian::little);
  out += '"';
  append_base64(out, {reinterpret_cast<const uint8_t*>(vector.data()), vector.size_bytes()});
  out += '"';
}

}  // namespace

Result<EmbeddingsCall> parse_embeddings(std::string_view body, const ApiRules& rules) {
  KIVI_ASSIGN_OR_RETURN(const ParsedJson parsed, parse_request_json(body, rules.stop));
  JsonFields fields(*parsed, "", rules.recorder);
  EmbeddingsCall call;
  refuse_fields(fields, {"messages"});
  const json* input = fields.raw("input");
  call.completion.request.normalize = fields.boolean("normalize", true);
  const std::string format = fields.text("encoding_format").value_or("float");
  if (format != "float" && format != "base64")
    fields.fail("encoding_format",
                fmt::format("is {}, must be float or base64", describe(json(format))));
  call.base64 = format == "base64";
  KIVI_RETURN_IF_ERROR(parse_pooled_fields(fields, rules, call.completion));
  KIVI_ASSIGN_OR_RETURN(call.completion.request.prompts,
                        parse_prompts(input, "input", rules.vocab_size));
  KIVI_RETURN_IF_ERROR(take_unknown(fields, rules, call.completion.unknown_fields));
  return call;
}

Result<ScoreCall> parse_score(std::string_view body, const ApiRules& rules) {
  KIVI_ASSIGN_OR_RETURN(const ParsedJson parsed, parse_request_json(body, rules.stop));
  JsonFields fields(*parsed, "", rules.recorder);
  ScoreCall call;
  // vLLM has two names for either side.
  const auto side = [&](const char* name, const char* other) {
    const char* given = fields.raw(other) != nullptr && fields.raw(name) == nullptr ? other : name;
    std::vector<std::string> texts = fields.texts(given, size_t(kMaxPromptsPerRequest));
    if (texts.empty()) fields.fail(name, "is missing or empty, must be a text or a list of texts");
    return texts;
  };
  const std::vector<std::string> first = side("text_1", "queries");
  const std::vector<std::string> second = side("text_2", "documents");
  KIVI_RETURN_IF_ERROR(parse_pooled_fields(fields, rules, call.completion));
  if (first.size() != 1 && first.size() != second.size())
    return wrong(fmt::format("text_1 has {} texts and text_2 has {}, must be one text_1 or as many",
                             first.size(), second.size()),
                 "text_1");
  call.first = int(first.size());
  auto& prompts = call.completion.request.prompts;
  prompts.insert(prompts.end(), first.begin(), first.end());
  prompts.insert(prompts.end(), second.begin(), second.end());
  KIVI_RETURN_IF_ERROR(take_unknown(fields, rules, call.completion.unknown_fields));
  return call;
}

Result<RerankCall> parse_rerank(std::string_view body, const ApiRules& rules) {
  KIVI_ASSIGN_OR_RETURN(const ParsedJson parsed, parse_request_json(body, rules.stop));
  JsonFields fields(*parsed, "", rules.recorder);
  RerankCall call;
  const auto query = fields.text("query");
  if (!query) fields.fail("query", "is missing, must be a text");
  call.top_n = fields.integer("top_n", 0, 0);
  call.return_documents = fields.boolean("return_documents", true);
  const json* documents = fields.raw("documents");
  KIVI_RETURN_IF_ERROR(parse_pooled_fields(fields, rules, call.completion));
  if (documents == nullptr || !documents->is_array() || documents->empty() ||
      documents->size() >= size_t(kMaxPromptsPerRequest))
    return wrong(fmt::format("documents is {}, must be a list of 1 to {} texts",
                             documents == nullptr ? "missing" : describe(*documents),
                             kMaxPromptsPerRequest - 1),
                 "documents");
  for (const json& entry : *documents) {
    KIVI_ASSIGN_OR_RETURN(std::string text, document_of(entry, call.documents.size()));
    call.documents.push_back(std::move(text));
  }
  const int count = int(call.documents.size());
  call.top_n = call.top_n == 0 ? count : std::min(call.top_n, count);
  auto& prompts = call.completion.request.prompts;
  prompts.emplace_back(*query);
  prompts.insert(prompts.end(), call.documents.begin(), call.documents.end());
  KIVI_RETURN_IF_ERROR(take_unknown(fields, rules, call.completion.unknown_fields));
  return call;
}

Error embeddings_error(Error error, const char* field) {
  return renamed(std::move(error), {{"prompt", field}});
}

PooledWriter::PooledWriter(const ServedModel& model, const CompletionCall& call, int64_t created)
    : id_(call.request.id), model_(model.name), created_(created) {}

std::string PooledWriter::list_head() const {
  std::string out = "{\"id\":";
  append_json_string(out, id_);
  out += ",\"object\":\"list\",\"created\":";
  append_json_int(out, created_);
  out += ",\"model\":";
  append_json_string(out, model_);
  out += ",\"data\":";
  return out;
}

EmbeddingsWriter::EmbeddingsWriter(const ServedModel& model, const EmbeddingsCall& call,
                                   int64_t created)
    : PooledWriter(model, call.completion, created), base64_(call.base64) {}

std::string EmbeddingsWriter::whole(std::span<const TextChunk> chunks,
                                    const Completion& completion) const {
  std::string out = list_head();
  int index = 0;
  append_json_list(out, vectors_of(chunks), [&](std::span<const float> vector) {
    out += "{\"object\":\"embedding\",\"index\":";
    append_json_int(out, index++);
    out += ",\"embedding\":";
    if (base64_)
      append_base64_floats(out, vector);
    else
      append_json_list(out, vector, [&](float x) { append_json_float(out, x); });
    out += '}';
  });
  out += ',';
  append_embeddings_usage(out, completion.usage());
  out += '}';
  return out;
}

ScoreWriter::ScoreWriter(const ServedModel& model, const ScoreCall& call, int64_t created)
    : PooledWriter(model, call.completion, created), first_(size_t(call.first)) {}

std::string ScoreWriter::whole(std::span<const TextChunk> chunks,
                               const Completion& completion) const {
  const Vectors vectors = vectors_of(chunks);
  std::string out = list_head();
  size_t index = 0;
  append_json_list(out, std::span(vectors).subspan(first_), [&](std::span<const float> second) {
    out += "{\"object\":\"score\",\"index\":";
    append_json_int(out, int64_t(index));
    out += ",\"score\":";
    append_json_float(out, cosine(vectors[first_ == 1 ? 0 : index], second));
    out += '}';
    ++index;
  });
  out += ',';
  append_embeddings_usage(out, completion.usage());
  out += '}';
  return out;
}

RerankWriter::RerankWriter(const ServedModel& model, RerankCall call, int64_t created)
    : PooledWriter(model, call.completion, created),
      documents_(std::move(call.documents)),
      top_n_(size_t(call.top_n)),
      return_documents_(call.return_documents) {}

std::string RerankWriter::whole(std::span<const TextChunk> chunks,
                                const Completion& completion) const {
  const Vectors vectors = vectors_of(chunks);
  std::vector<std::pair<float, size_t>> ranked;  // (score, document)
  for (size_t i = 0; i + 1 < vectors.size(); ++i)
    ranked.emplace_back(cosine(vectors[0], vectors[i + 1]), i);
  std::ranges::stable_sort(ranked, std::greater<>(), [](const auto& entry) { return entry.first; });
  ranked.resize(std::min(ranked.size(), top_n_));
  std::string out = "{\"id\":";
  append_json_string(out, id_);
  out += ",\"model\":";
  append_json_string(out, model_);
  out += ",\"results\":";
  append_json_list(out, ranked, [&](const auto& entry) {
    out += "{\"index\":";
    append_json_int(out, int64_t(entry.second));
    if (return_documents_) {
      out += ",\"document\":{\"text\":";
      append_json_string(out, documents_[entry.second]);
      out += '}';
    }
    out += ",\"relevance_score\":";
    append_json_float(out, entry.first);
    out += '}';
  });
  out += ',';
  append_embeddings_usage(out, completion.usage());
  out += '}';
  return out;
}

}  // namespace kivi
