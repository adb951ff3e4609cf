// SPDX-License-Identifier: Apache-2.0
// Answers a completion of any dialect over HTTP: submits it, and writes its chunks as they come.
#pragma once

#include <memory>

#include "server/http/http_connection.h"
#include "server/openai/openai_api.h"

namespace kivi {

// A completion that runs, and what writes its reply.
struct Started {
  CompletionCall call;
  std::shared_ptr<Completion> completion;
  std::unique_ptr<AnswerWriter> writer;
  const char* operation;  // "chat", "text_completion", "embeddings", "score" or "rerank"
};

// Submits a parsed call, whose reply has the id `id_prefix` + the request's id. The caller sets the
// writer, and the operation if it is no chat. Any thread.
Result<Started> start_call(HttpConnection& connection, CompletionCall call, const char* id_prefix);

// `begin` parses the request, and submits it by start_call(). It runs here or on a worker thread.
boost::asio::awaitable<void> answer(HttpConnection& connection,
                                    Result<Started> (*begin)(HttpConnection&));

}  // namespace kivi
