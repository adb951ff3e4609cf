// SPDX-License-Identifier: Apache-2.0
// /v1/embeddings, /v1/score and /v1/rerank over an engine that invents hidden states.
#include <bit>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>

#include "tests/http/http_fixture.h"

using namespace kivi;
using namespace kivi::testing;
using nlohmann::json;

namespace {

// What the fake runner's hidden states make of a text.
std::vector<float> expected_of(const std::string& text, bool mean, bool normalized) {
  const std::vector<int32_t> ids = tales_tokenizer().encode(text, true);
  std::vector<float> out(8);
  for (size_t i = mean ? 0 : ids.size() - 1; i < ids.size(); ++i)
    for (int c = 0; c < 8; ++c) out[size_t(c)] += FakeRunner::hidden_of(ids[i], int(i), c);
  double squares = 0;
  for (float& x : out) {
    if (mean) x = float(double(x) / double(ids.size()));
    squares += double(x) * double(x);
  }
  if (normalized)
    for (float& x : out) x = float(double(x) / std::sqrt(squares));
  return out;
}

double cosine(const std::string& a, const std::string& b) {
  const auto x = expected_of(a, false, true), y = expected_of(b, false, true);
  double sum = 0;
  for (size_t c = 0; c < x.size(); ++c) sum += double(x[c]) * double(y[c]);
  return sum;
}

std::vector<float> floats_of(const std::string& base64) {
  std::string bytes;
  uint32_t bits = 0;
  int have = 0;
  for (const char c : base64) {
    if (c == '=') break;
    const std::string digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    bits = bits << 6 | uint32_t(digits.find(c));
    if ((have += 6) >= 8) bytes += char(bits >> (have -= 8) & 255);
  }
  std::vector<float> out(bytes.size() / 4);
  std::memcpy(out.data(), bytes.data(), out.size() * 4);
  return out;
}

const std::vector<std::string> kTexts = {"Once upon a time", "There was a king", "a"};

}  // namespace

TEST_CASE("embeddings are the pooled hidden states, in the order of the inputs") {
  TestServer server;
  int tokens = 0;
  for (const std::string& text : kTexts) tokens += int(tales_tokenizer().encode(text, true).size());
  for (const bool mean : {false, true})
    for (const bool normalized : {false, true}) {
      const json reply = server
                             .post("/v1/embeddings", json{{"model", "tales"},
                                                          {"input", kTexts},
                                                          {"pooling", mean ? "mean" : "last"},
                                                          {"normalize", normalized}}
                                                         .dump())
                             .json();
      CHECK(reply["object"] == "list");
      CHECK(reply["model"] == "tales");
      CHECK(reply["id"].get<std::string>().starts_with("embd-"));
      CHECK(reply["usage"]["prompt_tokens"] == tokens);
      CHECK(reply["usage"]["total_tokens"] == tokens);
      REQUIRE(reply["data"].size() == kTexts.size());
      for (size_t i = 0; i < kTexts.size(); ++i) {
        CHECK(reply["data"][i]["index"] == i);
        CHECK(reply["data"][i]["object"] == "embedding");
        CHECK(reply["data"][i]["embedding"].get<std::vector<float>>() ==
              expected_of(kTexts[i], mean, normalized));
      }
    }
  CHECK(server.sample("kivi:prompt_tokens_total") > 0);
  CHECK(server.sample("kivi:generation_tokens_total") == 0);
  CHECK(server.sample("kivi:request_success_total{finished_reason=\"length\"}") == 12);
  CHECK(server.becomes_idle());
}

TEST_CASE("embeddings take ids and one text, and give base64") {
  TestServer server;
  const std::vector<int32_t> ids = tales_tokenizer().encode(kTexts[0], true);
  for (const json& input : {json(kTexts[0]), json(ids), json{ids}}) {
    const json reply =
        server.post("/v1/embeddings", json{{"input", input}, {"encoding_format", "base64"}}.dump())
            .json();
    REQUIRE(reply["data"].size() == 1);
    CHECK(floats_of(reply["data"][0]["embedding"]) == expected_of(kTexts[0], false, true));
  }
}

TEST_CASE("what is wrong with a request for embeddings is refused by name") {
  TestServer server;
  struct Case {
    json body;
    std::string param, code;
  };
  for (const Case& c : {
           Case{json::object(), "input", "invalid_value"},
           Case{{{"input", json::array()}}, "input", "invalid_value"},
           Case{{{"input", {1, -1}}}, "input", "invalid_value"},
           Case{{{"input", std::string(9000, 'x')}}, "input", "context_length_exceeded"},
           Case{{{"input", "x"}, {"dimensions", 4}}, "dimensions", "unsupported_parameter"},
           Case{{{"input", "x"}, {"stream", true}}, "stream", "unsupported_parameter"},
           Case{{{"input", "x"}, {"messages", json::array()}}, "messages", "unsupported_parameter"},
           Case{{{"input", "x"}, {"encoding_format", "int8"}}, "encoding_format", "invalid_value"},
           Case{{{"input", "x"}, {"pooling", "cls"}}, "pooling", "invalid_value"},
           Case{{{"input", "x"}, {"model", "y"}}, "model", "model_not_found"},
       }) {
    const Response reply = server.post("/v1/embeddings", c.body.dump());
    INFO(c.body.dump().substr(0, 100) << " " << reply.body);
    CHECK(reply.status == (c.code == "model_not_found" ? 404 : 400));
    CHECK(reply.json()["error"]["param"] == c.param);
    CHECK(reply.json()["error"]["code"] == c.code);
  }
  const json cut =
      server
          .post("/v1/embeddings",
                json{{"input", std::string(9000, 'x')}, {"truncate_prompt_tokens", 7}}.dump())
          .json();
  CHECK(cut["usage"]["prompt_tokens"] == 7);
  ServerOptions small = server_options();
  small.engine.config.max_reply_bytes = 200;
  TestServer tight(std::move(small));
  CHECK(tight.post("/v1/embeddings", R"({"input":"x"})").status == 200);
  CHECK(tight.post("/v1/embeddings", R"({"input":["x","y"]})").json()["error"]["param"] == "input");
}

TEST_CASE("a score is the cosine of two embeddings, one to many or pair by pair") {
  TestServer server;
  for (const char* path : {"/score", "/v1/score"}) {
    const json many =
        server.post(path, json{{"text_1", kTexts[0]}, {"text_2", kTexts}}.dump()).json();
    REQUIRE(many["data"].size() == 3);
    for (size_t i = 0; i < 3; ++i) {
      CHECK(many["data"][i]["index"] == i);
      CHECK(many["data"][i]["score"].get<double>() ==
            Approx(cosine(kTexts[0], kTexts[i])).margin(1e-6));
    }
    const json pairs = server
                           .post(path, json{{"queries", {kTexts[1], kTexts[2]}},
                                            {"documents", {kTexts[0], kTexts[1]}}}
                                           .dump())
                           .json();
    REQUIRE(pairs["data"].size() == 2);
    CHECK(pairs["data"][1]["score"].get<double>() ==
          Approx(cosine(kTexts[2], kTexts[1])).margin(1e-6));
  }
  const auto param_of = [&](const json& body) {
    return server.post("/v1/score", body.dump()).json()["error"]["param"];
  };
  CHECK(param_of({{"text_2", "x"}}) == "text_1");
  CHECK(param_of({{"text_1", "x"}}) == "text_2");
  CHECK(param_of({{"text_1", {"x", "y"}}, {"text_2", {"x", "y", "z"}}}) == "text_1");
}

TEST_CASE("rerank gives the documents by their likeness to the query") {
  TestServer server;
  const json body{{"query", "There was a king"},
                  {"documents", {"a", json{{"text", "There was a king"}}, "Once upon a time"}}};
  for (const char* path : {"/rerank", "/v1/rerank", "/v2/rerank"}) {
    const json reply = server.post(path, body.dump()).json();
    const json& results = reply["results"];
    REQUIRE(results.size() == 3);
    CHECK(results[0]["index"] == 1);
    CHECK(results[0]["document"]["text"] == "There was a king");
    CHECK(results[0]["relevance_score"].get<double>() == Approx(1));
    for (size_t i = 0; i + 1 < 3; ++i)
      CHECK(results[i]["relevance_score"].get<double>() >=
            results[i + 1]["relevance_score"].get<double>());
    CHECK(reply["usage"]["total_tokens"] > 0);
  }
  json top = body;
  top["top_n"] = 1;
  top["return_documents"] = false;
  const json results = server.post("/v1/rerank", top.dump()).json()["results"];
  REQUIRE(results.size() == 1);
  CHECK_FALSE(results[0].contains("document"));
  const auto param_of = [&](const json& wrong) {
    return server.post("/v1/rerank", wrong.dump()).json()["error"]["param"];
  };
  CHECK(param_of({{"documents", {"x"}}}) == "query");
  CHECK(param_of({{"query", "x"}}) == "documents");
  for (const json& documents : {json("x"), json::array(), json{1}})
    CHECK(param_of({{"query", "x"}, {"documents", documents}}) == "documents");
}

TEST_CASE("a client that goes away ends its embeddings, and a drain lets them end") {
  ServerOptions options = server_options();
  options.engine.runner.step_delay = std::chrono::milliseconds(20);
  options.engine.config.prefill_chunk_tokens = 16;
  TestServer server(std::move(options));
  const json body{{"input", std::vector<int32_t>(2000, 7)}, {"pooling", "mean"}};
  {
    Client client(server.port());
    client.send(Client::post_text("/v1/embeddings", body.dump()));
    CHECK(server.sample_becomes("kivi:num_requests_running", 1));
  }
  CHECK(server.becomes_idle());
  CHECK(server.sample("kivi:requests_aborted_total{reason=\"client_disconnect\"}") == 1);
}
