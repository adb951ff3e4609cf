// SPDX-License-Identifier: Apache-2.0
// The JSON of /v1/embeddings (OpenAI's), /v1/score and /v1/rerank (vLLM's, Cohere's and Jina's) <->
// the engine's types. A score is the cosine of two embeddings.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "server/openai/openai_api.h"

namespace kivi {

struct EmbeddingsCall {
  CompletionCall completion;
  bool base64 = false;  // encoding_format: floats as base64 of their little-endian bytes
};

struct ScoreCall {
  CompletionCall completion;
  int first = 1;  // how many prompts are text_1; the others are text_2
};

struct RerankCall {
  CompletionCall completion;  // the query, then the documents
  std::vector<std::string> documents;
  int top_n = 0;  // results in the reply
  bool return_documents = true;
};

// Errors: as parse_completion.
Result<EmbeddingsCall> parse_embeddings(std::string_view body, const ApiRules& rules);
Result<ScoreCall> parse_score(std::string_view body, const ApiRules& rules);
Result<RerankCall> parse_rerank(std::string_view body, const ApiRules& rules);

// Gives an error of a completion the names of these endpoints: what is wrong with a prompt is wrong
// with `field`.
Error embeddings_error(Error error, const char* field);

// What the replies have in common. They are never streamed.
class PooledWriter : public AnswerWriter {
 public:
  void append_event(std::string&, const TextChunk&, const Completion&) final {}
  void append_end(std::string&, const Completion&) final {}
  void append_failure(std::string&, const Error&) final {}

 protected:
  PooledWriter(const ServedModel& model, const CompletionCall& call, int64_t created);

  // A reply whose entries are in a list: its members before the list.
  std::string list_head() const;

  std::string id_, model_;
  int64_t created_;
};

class EmbeddingsWriter final : public PooledWriter {
 public:
  EmbeddingsWriter(const ServedModel& model, const EmbeddingsCall& call, int64_t created);
  std::string whole(std::span<const TextChunk> chunks, const Completion& completion) const override;

 private:
  bool base64_;
};

class ScoreWriter final : public PooledWriter {
 public:
  ScoreWriter(const ServedModel& model, const ScoreCall& call, int64_t created);
  std::string whole(std::span<const TextChunk> chunks, const Completion& completion) const override;

 private:
  size_t first_;
};

class RerankWriter final : public PooledWriter {
 public:
  RerankWriter(const ServedModel& model, RerankCall call, int64_t created);
  std::string whole(std::span<const TextChunk> chunks, const Completion& completion) const override;

 private:
  std::vector<std::string> documents_;
  size_t top_n_;
  bool return_documents_;
};

}  // namespace kivi
