// SPDX-License-Identifier: Apache-2.0
// POST /v1/embeddings, /v1/score, /v1/rerank.
#include <ctime>
#include <utility>

#include "server/http/answer.h"
#include "server/openai/embeddings_api.h"

namespace kivi {
namespace asio = boost::asio;

namespace {

ApiRules rules_of(HttpConnection& connection) {
  const ServerState& state = connection.shared().state;
  return api_rules(*state.model(), state.config().strict_params, connection.stop_token());
}

Result<Started> start_embeddings(HttpConnection& connection) {
  const ServedModel& model = *connection.shared().state.model();
  KIVI_ASSIGN_OR_RETURN(EmbeddingsCall call,
                        parse_embeddings(connection.request().body, rules_of(connection)));
  Result<Started> started = start_call(connection, std::move(call.completion), "embd-");
  if (!started.ok()) return embeddings_error(started.error(), "input");
  started->operation = "embeddings";
  call.completion = started->call;
  started->writer = std::make_unique<EmbeddingsWriter>(model, call, std::time(nullptr));
  return started;
}

Result<Started> start_score(HttpConnection& connection) {
  const ServedModel& model = *connection.shared().state.model();
  KIVI_ASSIGN_OR_RETURN(ScoreCall call,
                        parse_score(connection.request().body, rules_of(connection)));
  Result<Started> started = start_call(connection, std::move(call.completion), "score-");
  if (!started.ok()) return embeddings_error(started.error(), "text_2");
  started->operation = "score";
  call.completion = started->call;
  started->writer = std::make_unique<ScoreWriter>(model, call, std::time(nullptr));
  return started;
}

Result<Started> start_rerank(HttpConnection& connection) {
  const ServedModel& model = *connection.shared().state.model();
  KIVI_ASSIGN_OR_RETURN(RerankCall call,
                        parse_rerank(connection.request().body, rules_of(connection)));
  Result<Started> started = start_call(connection, std::move(call.completion), "rerank-");
  if (!started.ok()) return embeddings_error(started.error(), "documents");
  started->operation = "rerank";
  call.completion = started->call;
  started->writer = std::make_unique<RerankWriter>(model, std::move(call), std::time(nullptr));
  return started;
}

}  // namespace

asio::awaitable<void> handle_embeddings(HttpConnection& connection) {
  return answer(connection, start_embeddings);
}

asio::awaitable<void> handle_score(HttpConnection& connection) {
  return answer(connection, start_score);
}

asio::awaitable<void> handle_rerank(HttpConnection& connection) {
  return answer(connection, start_rerank);
}

}  // namespace kivi
