// SPDX-License-Identifier: Apache-2.0
// The memory plan's arithmetic, exact to the byte.
#include "engine/serving/memory_plan.h"

#include <catch2/catch.hpp>

#include "engine/serving/load.h"
#include "tests/model/tales.h"

namespace kivi {

namespace {

// Llama-2-7B's store.
constexpr KvShape kLlama7b = {32, 32, 128};
constexpr KvLayout kKivi2 = {{KvKind::kivi, 2, 2, 32, 128}, kLlama7b};
constexpr KvLayout kF16 = {{KvKind::f16, 16, 16, 0, 0}, kLlama7b};

EngineConfig config_with(int seqs, int chunk, int staging) {
  EngineConfig config;
  config.max_num_seqs = seqs;
  config.prefill_chunk_tokens = chunk;
  config.prefill_staging_tokens = staging;
  return config;
}

}  // namespace

TEST_CASE("A plan takes all but a page of its budget, and its parts are the format's bytes") {
  const int64_t budget = int64_t(10) << 30;
  const auto plan = plan_store(config_with(16, 512, 1024), kKivi2, 4096, budget);
  REQUIRE(plan.ok());
  // 1,024 staged tokens of 16 KiB a layer; 16 residuals of 64 MiB
  // (docs/design/kv-format.md, section 6).
  CHECK(plan->capacity.staging_pages == 16);
  CHECK(plan->staging == int64_t(1024) * 16384 * 32);
  CHECK(plan->capacity.slots == 16);
  CHECK(plan->residual == int64_t(16) * (64 << 20));
  CHECK(plan->bytes_per_token == 3072 * 32);
  CHECK(plan->bytes_per_token_f16 == 16384 * 32);
  CHECK(plan->pages == plan->capacity.pages * kKivi2.page_bytes());
  CHECK(plan->tokens_capacity == int64_t(plan->capacity.pages) * 64);
  const int64_t taken = store_bytes(*plan);
  CHECK(taken <= budget);
  CHECK(taken > budget - kKivi2.page_bytes());
  CHECK(plan->sequences_max == std::min<int64_t>(16, plan->capacity.pages / 64));
}

TEST_CASE("Only kivi formats have a residual, only chunked prompts of mode exact have staging") {
  const int64_t budget = int64_t(8) << 30;
  EngineConfig config = config_with(8, 512, 1024);
  const auto f16 = plan_store(config, kF16, 4096, budget);
  REQUIRE(f16.ok());
  CHECK(f16->residual == 0);
  CHECK(f16->staging == 0);
  CHECK(f16->capacity.slots == 8);

  CHECK(plan_store(config, kKivi2, 512, budget)->staging == 0);  // every prompt is one chunk
  CHECK(plan_store(config, kKivi2, 513, budget)->staging > 0);
  config.kivi_prefill = PrefillMode::stream;
  CHECK(plan_store(config, kKivi2, 4096, budget)->staging == 0);
}

TEST_CASE("Staging takes at most a quarter and residuals at most half of the rest") {
  const int64_t budget = 512 << 20;  // 4,096 staged tokens would be 2 GiB, 64 residuals 4 GiB
  const auto plan = plan_store(config_with(64, 512, 4096), kKivi2, 4096, budget);
  REQUIRE(plan.ok());
  CHECK(plan->staging == 128 << 20);
  CHECK(plan->capacity.slots == 3);  // of 64 MiB, in 192 MiB
  CHECK(plan->pages > 0);
  CHECK(store_bytes(*plan) <= budget);
}

TEST_CASE("A budget that does not hold one page and one residual is refused with the bytes") {
  const int64_t least = kKivi2.page_bytes() + kKivi2.slot_bytes();
  EngineConfig config = config_with(4, 512, 0);
  CHECK(plan_store(config, kKivi2, 4096, least).ok());
  for (const int64_t budget : {least - 1, int64_t(0), int64_t(-5)}) {
    const auto plan = plan_store(config, kKivi2, 4096, budget);
    REQUIRE_FALSE(plan.ok());
    CHECK(plan.error().code == ErrorCode::resource_exhausted);
    CHECK(plan.error().message.find(std::to_string(least)) != std::string::npos);
  }
}

TEST_CASE("Every format and shape leaves whole regions inside the budget") {
  for (const int bits : {2, 4, 8, 16})
    for (const int head_dim : {64, 96, 128, 256})
      for (const int64_t budget : {int64_t(3) << 20, (int64_t(64) << 20) + 17}) {
        const KvKind kind = bits == 16 ? KvKind::f16 : bits == 8 ? KvKind::f8 : KvKind::kivi;
        const int group = kind == KvKind::kivi ? 32 : 0;
        const KvLayout layout = {{kind, bits, bits, group, group}, {2, 2, head_dim}};
        CAPTURE(bits, head_dim, budget);
        const auto plan = plan_store(config_with(8, 64, 4096), layout, 2048, budget);
        REQUIRE(plan.ok());
        const int64_t left = budget - store_bytes(*plan);
        CHECK(left >= 0);
        CHECK(left < layout.page_bytes());
        const KvView view = lay_out_store(*plan, layout, nullptr);
        CHECK(view.staging - view.pages == plan->pages + plan->residual);
      }
}

TEST_CASE("Scratch is what is asked for, at most an eighth, and independent of the layers") {
  const int64_t budget = int64_t(8) << 30, wanted = 256 << 20;
  const EngineConfig config = config_with(8, 512, 1024);
  const auto plan = plan_store(config, kKivi2, 4096, budget, wanted);
  REQUIRE(plan.ok());
  CHECK(plan->scratch == wanted);
  CHECK(plan->scratch_tokens == wanted / (32 * 128 * 4));
  CHECK(store_bytes(*plan) <= budget);
  CHECK(store_bytes(*plan) > budget - kKivi2.page_bytes());
  KvLayout half = kKivi2;
  half.shape.layers = 16;
  CHECK(plan_store(config, half, 4096, budget, wanted)->scratch == wanted);
  const KvView view = lay_out_store(*plan, kKivi2, nullptr);
  CHECK(view.scratch_bytes == wanted);
  CHECK(view.scratch - view.staging == plan->staging);
  CHECK(plan_store(config, kKivi2, 4096, 1 << 30, wanted)->scratch == 128 << 20);
  CHECK(plan_store(config, kKivi2, 4096, budget)->scratch == 0);
}

TEST_CASE("A plan says up to which length prompts attend in 16 bits") {
  const int64_t budget = int64_t(8) << 30;
  EngineConfig config = config_with(8, 512, 1024);
  const auto says = [&](const char* text) {
    const auto plan = plan_store(config, kKivi2, 4096, budget);
    REQUIRE(plan.ok());
    CAPTURE(plan->text());
    CHECK(plan->text().find(text) != std::string::npos);
  };
  says("up to 1024 tokens attend to the whole prompt in 16 bits (exact)");
  config.prefill_staging_tokens = 4096;
  says("all attend to the whole prompt in 16 bits (exact)");
  config.kivi_prefill = PrefillMode::stream;
  says("up to 512 tokens attend to the whole prompt in 16 bits (one chunk)");
  CHECK(plan_store(config, kF16, 4096, budget)->prompts.empty());
}

TEST_CASE("--dry-run and loading agree on the plan") {
  const EngineConfig config = test_config("tales-llama", "kivi4");
  const auto dry = plan_memory(config);
  REQUIRE(dry.ok());
  const auto loaded = load_or_fail(config);
  CHECK(dry->text() == loaded->plan.text());
  CHECK(dry->weights == loaded->summary.weight_bytes);
  CHECK(dry->text().find("kivi4 G32 R32") != std::string::npos);
}

TEST_CASE("A context beyond the model's is refused") {
  EngineConfig config = test_config("tales-llama", "fp16");
  config.max_model_len = 2049;
  const auto plan = plan_memory(config);
  REQUIRE_FALSE(plan.ok());
  CHECK(plan.error().message == "max_model_len is 2049, must be at most the model's 2048");
}

TEST_CASE("A summary needs config.json alone") {
  const auto summary = summarize_model(model_folder("tales-mistral"));
  REQUIRE(summary.ok());
  CHECK(summary->architecture == "MistralForCausalLM");
  CHECK(summary->parameters == 1'250'432);
  CHECK(summary->dtype == "bfloat16");
  CHECK(summary->tokenizer_kind == "sentencepiece bpe");
  CHECK_FALSE(summary->has_chat_template);
}

}  // namespace kivi
