// SPDX-License-Identifier: Apache-2.0
// POST /tokenize, /detokenize.
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "engine/serving/completion.h"
#include "server/http/http_connection.h"
#include "server/http/worker.h"
#include "server/json_writer.h"
#include "server/openai/openai_api.h"

namespace kivi {
namespace asio = boost::asio;

namespace {

HttpReply tokenize(HttpContext& context, const HttpRequest& request, std::stop_token stop) {
  const ServedModel& model = *context.state.model();
  const auto call = parse_tokenize(
      request.body, api_rules(model, context.state.config().strict_params, std::move(stop)));
  if (!call.ok()) return error_reply(call.error());
  context.state.note_unknown_fields(call->unknown_fields);
  std::vector<int32_t> ids;
  if (call->chat) {
    auto chat_ids = chat_prompt_ids(model, *call->chat);
    if (!chat_ids.ok()) return error_reply(chat_ids.error());
    ids = std::move(*chat_ids);
  } else {
    if (const Status fits = check_text_bytes(call->prompt.size(), model, "prompt"); !fits.ok())
      return error_reply(fits.error());
    ids = model.tokenizer->encode(call->prompt, call->add_special_tokens);
  }
  std::string out = "{\"count\":";
  append_json_int(out, int64_t(ids.size()));
  out += ",\"max_model_len\":";
  append_json_int(out, model.max_model_len);
  out += ",\"tokens\":";
  append_json_list(out, ids, [&](int32_t id) { append_json_int(out, id); });
  out += ",\"token_strs\":";
  if (call->return_token_strs)
    append_json_list(out, ids,
                     [&](int32_t id) { append_json_string(out, model.tokenizer->token_name(id)); });
  else
    out += "null";
  out += '}';
  return json_reply(std::move(out));
}

HttpReply detokenize(HttpContext& context, const HttpRequest& request, std::stop_token stop) {
  const ServedModel& model = *context.state.model();
  const auto call = parse_detokenize(
      request.body, api_rules(model, context.state.config().strict_params, std::move(stop)));
  if (!call.ok()) return error_reply(call.error());
  context.state.note_unknown_fields(call->unknown_fields);
  std::string out = "{\"prompt\":";
  append_json_string(out, model.tokenizer->decode(call->tokens, /*skip_special=*/false));
  out += '}';
  return json_reply(std::move(out));
}

}  // namespace

asio::awaitable<void> handle_tokenize(HttpConnection& connection) {
  HttpReply reply = co_await run_by_size(connection, [&connection] {
    return tokenize(connection.shared(), connection.request(), connection.stop_token());
  });
  connection.drop_body();
  co_await connection.reply(std::move(reply));
}

asio::awaitable<void> handle_detokenize(HttpConnection& connection) {
  HttpReply reply = co_await run_by_size(connection, [&connection] {
    return detokenize(connection.shared(), connection.request(), connection.stop_token());
  });
  connection.drop_body();
  co_await connection.reply(std::move(reply));
}

}  // namespace kivi
