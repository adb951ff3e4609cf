// SPDX-License-Identifier: Apache-2.0
// GET /v1/models, /v1/models/{id}, /tokenizer_info.
#include <fmt/format.h>

#include "engine/serving/chat_prompt.h"
#include "server/http/http_routes.h"
#include "server/json_writer.h"

namespace kivi {
namespace {

// `id`: a name of the model.
std::string model_json(const ServedModel& model, const std::string& id) {
  std::string out = "{\"id\":";
  append_json_string(out, id);
  out += ",\"object\":\"model\",\"created\":";
  append_json_int(out, model.created);
  out += ",\"owned_by\":\"kivi\",\"root\":";
  append_json_string(out, model.name);
  out += ",\"parent\":null,\"max_model_len\":";
  append_json_int(out, model.max_model_len);
  out += '}';
  return out;
}

// "name":"</s>","name_id":2 ; nulls where the tokenizer has none.
void append_special(std::string& out, const Tokenizer& tokenizer, const char* name,
                    std::optional<int32_t> id) {
  out += fmt::format(",\"{}\":", name);
  if (id)
    append_json_string(out, tokenizer.token_name(*id));
  else
    out += "null";
  out += fmt::format(",\"{}_id\":", name);
  if (id)
    append_json_int(out, *id);
  else
    out += "null";
}

}  // namespace

HttpReply handle_models(HttpContext& context, const HttpRequest&) {
  const ServedModel& model = *context.state.model();
  std::string list = model_json(model, model.name);
  for (const std::string& alias : model.aliases) list += "," + model_json(model, alias);
  return json_reply("{\"object\":\"list\",\"data\":[" + list + "]}");
}

HttpReply handle_model(HttpContext& context, const HttpRequest& request) {
  const std::string id = request.path.substr(std::string_view("/v1/models/").size());
  if (has_name(*context.state.model(), id))
    return json_reply(model_json(*context.state.model(), id));
  std::string quoted;
  append_json_string(quoted, id.substr(0, 200));
  return error_reply(
      Error{ErrorCode::not_found, fmt::format("the model {} does not exist", quoted), "model"});
}

HttpReply handle_tokenizer_info(HttpContext& context, const HttpRequest&) {
  const ServedModel& model = *context.state.model();
  const Tokenizer& tokenizer = *model.tokenizer;
  std::string out = "{\"tokenizer_class\":";
  append_json_string(out, tokenizer.kind());
  out += ",\"vocab_size\":";
  append_json_int(out, tokenizer.vocab_size());
  out += ",\"model_max_length\":";
  append_json_int(out, model.max_model_len);
  append_special(out, tokenizer, "bos_token", tokenizer.bos_id());
  append_special(out, tokenizer, "eos_token", tokenizer.eos_id());
  out += ",\"chat_template\":";
  if (model.chat != nullptr)
    append_json_string(out, model.chat->template_text());
  else
    out += "null";
  out += '}';
  return json_reply(std::move(out));
}

}  // namespace kivi
