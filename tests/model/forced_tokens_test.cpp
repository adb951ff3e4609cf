// SPDX-License-Identifier: Apache-2.0
// Structured output of a real model: tokens that the format forces are computed together.
#include "engine/every_token_sampled.h"
#include "engine/serving/structured_output.h"
#include "tests/model/tales.h"

using namespace kivi;

namespace {

constexpr const char* kSchema =
    R"({"type":"object","properties":{"description":{"type":"string","maxLength":20},)"
    R"("number_of_children":{"type":"integer","minimum":0,"maximum":99},)"
    R"("lives_in_a_castle":{"type":"boolean"},"favorite_animal":{"enum":["a wolf","a raven"]}},)"
    R"("required":["description","number_of_children","lives_in_a_castle","favorite_animal"],)"
    R"("additionalProperties":false})";

}  // namespace

TEST_CASE("forced tokens save steps, and change no token where chunks change no number", "[long]") {
  const Golden golden = read_golden("tales-llama");
  for (const char* format : {"fp16", "kivi2"}) {
    INFO(format);
    const auto model = load_or_fail(test_config("tales-llama", format));
    OutputFormat schema;
    schema.kind = OutputFormat::Kind::json_schema;
    schema.text = kSchema;
    schema.field = "response_format";
    const auto prepared = model->structured->prepare(schema, {});
    REQUIRE(prepared.ok());
    struct Run {
      std::vector<Output> outputs;
      uint64_t steps = 0, forced = 0;
    };
    const auto run = [&](bool jumps, int logprobs) {
      std::vector<Request> requests;
      for (int i = 0; i < 4; ++i) {
        Request& request = requests.emplace_back(greedy_request(golden.prompt, 200, logprobs));
        request.sampling.temperature = i % 2 == 0 ? 0 : 1;
        request.sampling.seed = uint64_t(i);
        request.constraint = (*prepared)->begin();
        if (!jumps)
          request.constraint = std::make_shared<EveryTokenSampled>(std::move(request.constraint));
      }
      const EngineStats before = model->engine->stats();
      Run out{run_all(*model->engine, requests)};
      const EngineStats after = model->engine->stats();
      out.steps = after.steps - before.steps;
      out.forced = after.forced_tokens - before.forced_tokens;
      return out;
    };
    const Run sampled = run(false, -1), jumped = run(true, -1), scored = run(true, 0);
    CHECK(sampled.forced == 0);
    CHECK(scored.forced == 0);
    CHECK(jumped.forced > 40);
    CHECK(jumped.steps < sampled.steps);
    WARN(format << ": " << sampled.steps << " steps, and " << jumped.steps << " with "
                << jumped.forced << " forced tokens");
    for (size_t i = 0; i < sampled.outputs.size(); ++i) {
      // In a KIVI format the tokens of a chunk attend to each other in 16 bits, so that the numbers
      // behind a forced text are others.
      if (format == std::string("fp16")) CHECK(jumped.outputs[i].ids == sampled.outputs[i].ids);
      CHECK(scored.outputs[i].ids == sampled.outputs[i].ids);
      CHECK(jumped.outputs[i].finish == FinishReason::stop);
      std::string text;
      for (const int32_t id : jumped.outputs[i].ids)
        text += model->served.tokenizer->token_bytes(id, true);
      CHECK(nlohmann::json::parse(text).size() == 4);
    }
  }
}
