// SPDX-License-Identifier: Apache-2.0
// An HTTP server in this process, on a port of its own, over an engine whose runner invents tokens
// and the tokenizer of models/tales-llama. What the server is made of stays in http_fixture.cpp, so
// that a test is compiled without Boost's headers.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "server/metrics.h"
#include "server/server_state.h"
#include "tests/engine/fake_runner.h"
#include "tests/http/client.h"

namespace kivi {
class ChatPrompt;
class HttpServer;
class StructuredOutput;
}  // namespace kivi

namespace kivi::testing {

struct ServerOptions {
  ServerConfig http;
  FakeEngineOptions engine;
  bool loaded = true;         // false: set_model() is the test's
  std::string chat_template;  // Jinja; "": the model has none
};

// The vocabulary of the tokenizer, and steps of a quarter of a millisecond.
ServerOptions server_options();

const Tokenizer& tales_tokenizer();

// The tokens of what a model says that always says " there was a king".
int king_tokens();

// A model that always says `text`, with a chat template that takes tools.
ServerOptions saying(const std::string& text);

class TestServer {
 public:
  explicit TestServer(ServerOptions options = server_options());
  ~TestServer();
  TestServer(const TestServer&) = delete;

  void set_model();
  HttpServer& http() { return *http_; }
  ServerState& state() { return state_; }
  Engine& engine() { return *engine_; }
  Metrics& metrics() { return metrics_; }
  int port() const { return port_; }
  Client client() const { return Client(port_); }

  // One POST on a fresh connection. Verifies that there is a reply.
  Response post(const std::string& path, const std::string& body, const std::string& headers = "");
  Response complete(const nlohmann::json& body);
  Response get(const std::string& path, const std::string& headers = "");

  // A sample of /metrics by its text before the value: `kivi:x{a="b"}`; -1 where it is absent.
  // Labels are compared without model_name.
  double sample(const std::string& series);
  // Does the sample reach `value` within `timeout`?
  bool sample_becomes(const std::string& series, double value,
                      std::chrono::milliseconds timeout = std::chrono::seconds(10));
  // Is the engine empty, with every page and slot free, within `timeout`?
  bool becomes_idle(std::chrono::milliseconds timeout = std::chrono::seconds(10));

 private:
  ServerOptions options_;
  Metrics metrics_;
  ServerState state_;
  std::unique_ptr<HttpServer> http_;
  std::unique_ptr<StructuredOutput> structured_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<ChatPrompt> chat_;
  ServedModel model_;
  int port_ = -1;
};

Response chat(TestServer& server, const nlohmann::json& body);

}  // namespace kivi::testing
