// SPDX-License-Identifier: Apache-2.0
#include "tests/fuzz/fuzz_model.h"

#include <nlohmann/json.hpp>

#include "engine/serving/chat_prompt.h"
#include "engine/text/bpe_tokenizer.h"
#include "tests/engine/fake_runner.h"
#include "tests/fuzz/seeds.h"

namespace kivi::fuzz {
namespace {

constexpr int kContextTokens = 64;

struct World {
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<ChatPrompt> chat;
  std::unique_ptr<Engine> engine;
  ServedModel model;
};

World* make_world() {
  auto world = std::make_unique<World>();
  auto tokenizer =
      make_bpe_tokenizer("fuzz", nlohmann::json::parse(seeds_of("tokenizer_json").front()), {});
  KIVI_VERIFY(tokenizer.ok());
  world->tokenizer = std::move(*tokenizer);
  auto chat = ChatPrompt::make({"{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
                                "{% if add_generation_prompt %}assistant: {% endif %}",
                                "fuzz"},
                               *world->tokenizer);
  KIVI_VERIFY(chat.ok());
  world->chat = std::move(*chat);
  kivi::testing::FakeEngineOptions options;
  options.runner.vocab_size = world->tokenizer->vocab_size();
  options.max_model_len = kContextTokens;
  world->engine = kivi::testing::make_fake_engine(std::move(options));
  world->engine->start();
  world->model.name = "fuzz";
  world->model.fingerprint = "fp_fuzz";
  world->model.max_model_len = kContextTokens;
  world->model.tokenizer = world->tokenizer.get();
  world->model.engine = world->engine.get();
  world->model.chat = world->chat.get();
  return world.release();
}

}  // namespace

const ServedModel& fuzz_model() {
  // Never destroyed: the engine's thread may still notify while the process ends.
  static const World* const world = make_world();
  return world->model;
}

}  // namespace kivi::fuzz
