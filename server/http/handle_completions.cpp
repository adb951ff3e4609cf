// SPDX-License-Identifier: Apache-2.0
// POST /v1/completions, /v1/chat/completions, and what they would compute: .../render.

#include <ctime>
#include <utility>

#include "engine/serving/completion_prompts.h"
#include "server/http/answer.h"
#include "server/http/chat_call.h"
#include "server/http/worker.h"
#include "server/json_writer.h"

namespace kivi {
namespace asio = boost::asio;

namespace {

Result<CompletionCall> read_completion(HttpConnection& connection) {
  const ServerState& state = connection.shared().state;
  return parse_completion(
      connection.request().body,
      api_rules(*state.model(), state.config().strict_params, connection.stop_token()));
}

Result<CompletionCall> read_chat(HttpConnection& connection) {
  KIVI_ASSIGN_OR_RETURN(ChatCall call,
                        parse_chat(connection.request().body, chat_rules(connection)));
  return with_prompt(*connection.shared().state.model(), std::move(call));
}

// What is wrong with the prompt of a chat is wrong with its messages.
Error of_messages(Error error) {
  if (error.field == "prompt") error.field = "messages";
  return error;
}

Result<Started> start_completion(HttpConnection& connection) {
  KIVI_ASSIGN_OR_RETURN(CompletionCall call, read_completion(connection));
  KIVI_ASSIGN_OR_RETURN(Started started, start_call(connection, std::move(call), "cmpl-"));
  started.operation = "text_completion";
  started.writer = std::make_unique<CompletionWriter>(*connection.shared().state.model(),
                                                      started.call, std::time(nullptr));
  return started;
}

Result<Started> start_chat(HttpConnection& connection) {
  KIVI_ASSIGN_OR_RETURN(CompletionCall call, read_chat(connection));
  Result<Started> started = start_call(connection, std::move(call), "chatcmpl-");
  if (!started.ok()) return of_messages(started.error());
  started->writer = std::make_unique<ChatWriter>(*connection.shared().state.model(), started->call,
                                                 std::time(nullptr));
  return started;
}

void append_rendered(std::string& out, const std::string& id, const ServedModel& model,
                     const std::vector<int32_t>& ids) {
  out += "{\"request_id\":";
  append_json_string(out, id);
  out += ",\"model\":";
  append_json_string(out, model.name);
  out += ",\"token_ids\":";
  append_json_list(out, ids, [&](int32_t token) { append_json_int(out, token); });
  out += '}';
}

// The token ids of a request, as the engine would get them. Nothing is submitted. Any thread.
HttpReply render(HttpConnection& connection, Result<CompletionCall> call, bool chat) {
  if (!call.ok()) return error_reply(chat ? of_messages(call.error()) : call.error());
  ServerState& state = connection.shared().state;
  const ServedModel& model = *state.model();
  state.note_unknown_fields(call->unknown_fields);
  if (const Status valid = validate(call->request, model); !valid.ok())
    return error_reply(chat ? of_messages(valid.error()) : valid.error());
  const Result<std::vector<PromptIds>> prompts = encode_prompts(call->request, model);
  if (!prompts.ok()) return error_reply(chat ? of_messages(prompts.error()) : prompts.error());
  const std::string id =
      (chat ? "chatcmpl-" : "cmpl-") +
      (call->request_id.empty() ? connection.request().request_id : call->request_id);
  std::string out;
  if (chat)
    append_rendered(out, id, model, *prompts->front());
  else
    append_json_list(out, *prompts,
                     [&](const PromptIds& ids) { append_rendered(out, id, model, *ids); });
  return json_reply(std::move(out));
}

asio::awaitable<void> render_call(HttpConnection& connection,
                                  Result<CompletionCall> (*read)(HttpConnection&), bool chat) {
  HttpReply reply = co_await run_by_size(
      connection, [&connection, read, chat] { return render(connection, read(connection), chat); });
  connection.drop_body();
  co_await connection.reply(std::move(reply));
}

}  // namespace

asio::awaitable<void> handle_completions(HttpConnection& connection) {
  return answer(connection, start_completion);
}

asio::awaitable<void> handle_chat_completions(HttpConnection& connection) {
  return answer(connection, start_chat);
}

asio::awaitable<void> handle_completions_render(HttpConnection& connection) {
  return render_call(connection, read_completion, /*chat=*/false);
}

asio::awaitable<void> handle_chat_render(HttpConnection& connection) {
  return render_call(connection, read_chat, /*chat=*/true);
}

}  // namespace kivi
