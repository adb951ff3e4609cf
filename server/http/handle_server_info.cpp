// SPDX-License-Identifier: Apache-2.0
// GET /load, /server_info: what the server does and is.
#include <chrono>

#include "base/version.h"
#include "server/http/http_routes.h"
#include "server/json_writer.h"

namespace kivi {
namespace {

double pages_held(const EngineStats& stats) {
  return stats.kv_pages_total > 0
             ? double(stats.kv_pages_total - stats.kv_pages_free) / double(stats.kv_pages_total)
             : 0;
}

// "name":value, with a comma before it if it is not the first member.
class Members {
 public:
  void text(const char* name, std::string_view value) {
    begin(name);
    append_json_string(json_, value);
  }
  void integer(const char* name, int64_t value) {
    begin(name);
    append_json_int(json_, value);
  }
  void number(const char* name, double value) {
    begin(name);
    append_json_float(json_, float(value));
  }
  void boolean(const char* name, bool value) {
    begin(name);
    json_ += value ? "true" : "false";
  }
  std::string take() { return json_ + "}"; }

 private:
  void begin(const char* name) {
    if (json_.size() > 1) json_ += ',';
    append_json_string(json_, name);
    json_ += ':';
  }
  std::string json_ = "{";
};

const char* name_of(ServerPhase phase) {
  switch (phase) {
    case ServerPhase::loading:
      return "loading";
    case ServerPhase::leaving:
    case ServerPhase::draining:
      return "draining";
    case ServerPhase::ready:
      break;
  }
  return "ready";
}

}  // namespace

HttpReply handle_load(HttpContext& context, const HttpRequest&) {
  const EngineStats stats = context.state.model()->engine->stats();
  Members load;
  load.integer("server_load", int64_t(stats.running) + stats.waiting);
  load.integer("requests_running", stats.running);
  load.integer("requests_waiting", stats.waiting);
  load.number("kv_cache_usage", pages_held(stats));
  return json_reply(load.take());
}

HttpReply handle_server_info(HttpContext& context, const HttpRequest&) {
  const ServerState& state = context.state;
  const ServedModel& model = *state.model();
  const EngineConfig& config = model.engine->config();
  const EngineStats stats = model.engine->stats();
  Members info;
  info.text("version", KIVI_VERSION);
  info.text("phase", name_of(state.phase()));
  info.number("uptime_seconds",
              std::chrono::duration<double>(Clock::now() - state.started()).count());
  info.text("model", model.name);
  info.text("system_fingerprint", model.fingerprint);
  info.integer("max_model_len", model.max_model_len);
  info.integer("vocab_size", model.engine->model().vocab_size);
  info.text("tokenizer", model.tokenizer->kind());
  info.boolean("chat_template", model.chat != nullptr);
  info.text("kv_cache_dtype", kv_format_name(model));
  info.integer("kv_cache_tokens_capacity",
               stats.kv_pages_total * KvLayout{model.kv_format, {}}.page_tokens());
  info.number("kv_cache_usage", pages_held(stats));
  info.boolean("enable_prefix_caching", config.enable_prefix_caching);
  info.integer("max_num_seqs", config.max_num_seqs);
  info.integer("max_num_batched_tokens", config.max_num_batched_tokens);
  info.integer("max_num_queued_reqs", config.max_num_queued_reqs);
  info.integer("max_logprobs", config.max_logprobs);
  info.integer("requests_running", stats.running);
  info.integer("requests_waiting", stats.waiting);
  return json_reply(info.take());
}

}  // namespace kivi
