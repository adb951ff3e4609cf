// SPDX-License-Identifier: Apache-2.0
#include "tests/http/http_fixture.h"

#include <regex>
#include <thread>
#include <utility>

#include "engine/serving/chat_prompt.h"
#include "server/http/http_server.h"

namespace kivi::testing {

ServerOptions server_options() {
  ServerOptions options;
  options.http.port = 0;
  options.http.allowed_hosts = {"x"};  // what Client sends
  options.http.header_timeout = 2;
  options.http.write_timeout = 2;
  options.http.idle_timeout = 2;
  options.engine.runner.vocab_size = 4096;
  options.engine.runner.step_delay = std::chrono::microseconds(250);
  return options;
}

const Tokenizer& tales_tokenizer() {
  static const std::unique_ptr<Tokenizer> tokenizer = [] {
    auto loaded = load_tokenizer(KIVI_SOURCE_DIR "/models/tales-llama");
    KIVI_VERIFY(loaded.ok());
    return std::move(loaded).value();
  }();
  return *tokenizer;
}

int king_tokens() { return int(tales_tokenizer().encode("there was a king", false).size()); }

ServerOptions saying(const std::string& text) {
  ServerOptions options = server_options();
  options.chat_template =
      "{% if tools %}{{ tools | tojson }} answer with <tool_call> {% endif %}"
      "{% for m in messages %}{{ m.role }}: {{ m.reasoning_content }} {{ m.content }}{% endfor %}";
  options.engine.runner.tokens = FakeRunnerOptions::Tokens::script;
  options.engine.runner.script = tales_tokenizer().encode_after_special(text);
  return options;
}

TestServer::TestServer(ServerOptions options)
    : options_(std::move(options)),
      metrics_(options_.http.metrics_prefix, "tales"),
      state_(options_.http, metrics_) {
  http_ = std::make_unique<HttpServer>(state_);
  engine_ = make_fake_engine(options_.engine);
  engine_->on_step([this](int rows, double) { metrics_.step(rows); });
  engine_->start();
  model_.name = "tales";
  model_.path = "models/tales-llama";
  model_.fingerprint = "fp_test";
  model_.created = 1700000000;
  model_.max_model_len = options_.engine.max_model_len;
  model_.hidden = options_.engine.runner.hidden;
  model_.kv_format = options_.engine.format;
  model_.tokenizer = &tales_tokenizer();
  model_.engine = engine_.get();
  structured_ = std::make_unique<StructuredOutput>(tales_tokenizer(), engine_->model().vocab_size,
                                                   engine_->model().eos_token_ids);
  model_.structured = structured_.get();
  if (!options_.chat_template.empty()) {
    auto chat = ChatPrompt::make({options_.chat_template, "test"}, tales_tokenizer());
    KIVI_VERIFY(chat.ok());
    chat_ = std::move(*chat);
    model_.chat = chat_.get();
  }
  const Status started = http_->start();
  KIVI_VERIFY(started.ok());
  port_ = http_->port();
  if (options_.loaded) set_model();
}

TestServer::~TestServer() {
  http_->stop();
  metrics_.detach();
  engine_.reset();  // before http_: the server takes its notifications
}

void TestServer::set_model() {
  metrics_.attach(model_);
  state_.set_model(model_);
}

Response TestServer::post(const std::string& path, const std::string& body,
                          const std::string& headers) {
  auto response = client().post(path, body, headers);
  KIVI_VERIFY(response.has_value());
  return *response;
}

Response TestServer::complete(const nlohmann::json& body) {
  return post("/v1/completions", body.dump());
}

Response TestServer::get(const std::string& path, const std::string& headers) {
  auto response = client().get(path, headers);
  KIVI_VERIFY(response.has_value());
  return *response;
}

double TestServer::sample(const std::string& series) {
  std::string text =
      std::regex_replace(metrics_.scrape(), std::regex("model_name=\"tales\",?"), "");
  text = std::regex_replace(text, std::regex("\\{\\}"), "");
  const size_t at = ("\n" + text).find("\n" + series + " ");
  return at == std::string::npos ? -1 : std::stod(text.substr(at + series.size() + 1));
}

bool TestServer::sample_becomes(const std::string& series, double value,
                                std::chrono::milliseconds timeout) {
  for (const auto end = Clock::now() + timeout; sample(series) != value;) {
    if (Clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

bool TestServer::becomes_idle(std::chrono::milliseconds timeout) {
  const auto end = Clock::now() + timeout;
  for (;;) {
    const EngineStats s = engine_->stats();
    if (s.running == 0 && s.waiting == 0 && s.kv_pages_free == s.kv_pages_total &&
        s.kv_slots_free == s.kv_slots_total)
      return true;
    if (Clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

Response chat(TestServer& server, const nlohmann::json& body) {
  return server.post("/v1/chat/completions", body.dump());
}

}  // namespace kivi::testing
