// SPDX-License-Identifier: Apache-2.0
// POST /v1/messages, /v1/messages/count_tokens, /v1/responses: other dialects of chats.

#include <ctime>
#include <utility>

#include "server/http/answer.h"
#include "server/http/chat_call.h"
#include "server/http/worker.h"
#include "server/json_writer.h"
#include "server/openai/messages_api.h"
#include "server/openai/responses_api.h"

namespace kivi {
namespace asio = boost::asio;

namespace {

Result<Started> start_messages(HttpConnection& connection) {
  const ServedModel& model = *connection.shared().state.model();
  KIVI_ASSIGN_OR_RETURN(ChatCall chat,
                        parse_messages(connection.request().body, chat_rules(connection)));
  Result<CompletionCall> call = with_prompt(model, std::move(chat));
  if (!call.ok()) return messages_error(call.error());
  Result<Started> started = start_call(connection, std::move(*call), "msg_");
  if (!started.ok()) return messages_error(started.error());
  started->writer = std::make_unique<MessagesWriter>(model, started->call);
  return started;
}

Result<Started> start_responses(HttpConnection& connection) {
  const ServedModel& model = *connection.shared().state.model();
  KIVI_ASSIGN_OR_RETURN(ResponsesCall parsed,
                        parse_responses(connection.request().body, chat_rules(connection)));
  Result<CompletionCall> call = with_prompt(model, std::move(parsed.chat));
  if (!call.ok()) return responses_error(call.error());
  Result<Started> started = start_call(connection, std::move(*call), "resp_");
  if (!started.ok()) return responses_error(started.error());
  started->writer = std::make_unique<ResponsesWriter>(model, started->call, std::move(parsed.echo),
                                                      std::time(nullptr));
  return started;
}

// Any thread.
HttpReply count_tokens(HttpConnection& connection) {
  ServerState& state = connection.shared().state;
  Result<ChatCall> chat = parse_count_tokens(connection.request().body, chat_rules(connection));
  if (!chat.ok()) return error_reply(chat.error());
  state.note_unknown_fields(chat->completion.unknown_fields);
  const auto ids = chat_prompt_ids(*state.model(), chat->chat);
  if (!ids.ok()) return error_reply(messages_error(ids.error()));
  std::string out = "{\"input_tokens\":";
  append_json_int(out, int64_t(ids->size()));
  out += '}';
  return json_reply(std::move(out));
}

}  // namespace

asio::awaitable<void> handle_messages(HttpConnection& connection) {
  return answer(connection, start_messages);
}

asio::awaitable<void> handle_responses(HttpConnection& connection) {
  return answer(connection, start_responses);
}

asio::awaitable<void> handle_count_tokens(HttpConnection& connection) {
  HttpReply reply =
      co_await run_by_size(connection, [&connection] { return count_tokens(connection); });
  connection.drop_body();
  co_await connection.reply(std::move(reply));
}

}  // namespace kivi
