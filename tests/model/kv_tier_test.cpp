// SPDX-License-Identifier: Apache-2.0
// A hit from the host's memory or from disk equals a hit from the store, bit by bit, on a real
// model: with copies that take their time, after a restart, and with files that were changed.
#include <catch2/catch.hpp>
#include <random>

#include "kernels/cpu/cpu_backend.h"
#include "tests/model/prompted_run.h"
#include "tests/model/temporary_folder.h"

using namespace kivi;

namespace {

// "layers": a table of bits that differ from layer to layer, upon kivi4.5.
EngineConfig config_of(const std::string& format, PrefillMode mode) {
  const bool layers = format == "layers";
  EngineConfig config = test_config(any_model(), layers ? "kivi4.5" : format);
  const int count = layers ? load_or_fail(config)->summary.layers : 0;
  for (int layer = 0; layer < count; ++layer)
    config.kv_layer_table.add(layer % 2 == 0 ? 2 : 4, layer % 3 == 0 ? 4 : 2);
  config.enable_prefix_caching = true;
  config.kivi_prefill = mode;
  config.prefill_chunk_tokens = 200;
  config.kv_host_memory = 64 << 20;
  return config;
}

// A store for about 1,400 tokens. Prompts of mode exact are one chunk, so that nothing is staged: a
// small store has little room for that.
EngineConfig small_config_of(const std::string& format, PrefillMode mode) {
  EngineConfig config = config_of(format, mode);
  config.max_num_seqs = 2;
  if (mode == PrefillMode::stream) return config;
  config.prefill_chunk_tokens = config.max_model_len;
  config.max_num_batched_tokens = config.max_model_len + 32;
  return config;
}

// The bytes of a store that holds `tokens` tokens in pages, and what else a step needs.
int64_t store_for(const LoadedModel& loaded, int tokens) {
  const MemoryPlan& plan = loaded.plan;
  const int64_t page = plan.pages / plan.capacity.pages;
  return plan.residual + plan.sinks + plan.staging + plan.scratch +
         page * (tokens * int64_t(plan.capacity.pages) / plan.tokens_capacity + 1);
}

// Sends prompts until nothing is left in the store of what was there.
void evict(LoadedModel& loaded, int count = 6) {
  for (int i = 0; i < count; ++i) run(loaded, greedy_request(prompt_of(loaded, 900, 100 + i), 4));
}

}  // namespace

TEST_CASE("a hit from the host's memory has the bits of a hit from the store", "[long]") {
  const auto [format, mode] =
      GENERATE(table<std::string, PrefillMode>({{"fp16", PrefillMode::exact},
                                                {"fp8", PrefillMode::exact},
                                                {"kivi2", PrefillMode::exact},
                                                {"kivi2.5", PrefillMode::exact},
                                                {"kivi2.5", PrefillMode::stream},
                                                {"layers", PrefillMode::exact}}));
  CAPTURE(format);
  EngineConfig config = small_config_of(format, mode);
  const auto large = load_or_fail(config);
  config.kv_cache_memory_bytes = store_for(*load_or_fail(config), 1400);
  const auto small = load_or_fail(config);
  dynamic_cast<CpuBackend&>(*small->backend).delay_copies(std::chrono::microseconds(2000));
  const std::vector<int32_t> prompt = prompt_of(*large, 700);
  CHECK(run(*small, greedy_request(prompt, 40)).output ==
        run(*large, greedy_request(prompt, 40)).output);
  const Run hit = run(*large, greedy_request(prompt, 40));
  REQUIRE(hit.cached_tokens > 300);
  evict(*small);
  const uint64_t fetched = small->engine->stats().tier.tokens_fetched;
  const Run from_host = run(*small, greedy_request(prompt, 40));
  CHECK(from_host.cached_tokens == hit.cached_tokens);
  CHECK(from_host.output == hit.output);
  CHECK(small->engine->stats().tier.tokens_fetched > fetched);
}

TEST_CASE("others go on while a request's pages are on their way", "[long]") {
  EngineConfig config = small_config_of("kivi2.5", PrefillMode::exact);
  config.kv_cache_memory_bytes = store_for(*load_or_fail(config), 1400);
  const auto loaded = load_or_fail(config);
  const std::vector<int32_t> prompt = prompt_of(*loaded, 700);
  run(*loaded, greedy_request(prompt, 4));
  evict(*loaded);
  dynamic_cast<CpuBackend&>(*loaded->backend).delay_copies(std::chrono::milliseconds(400));
  auto other = loaded->engine->submit(greedy_request(prompt_of(*loaded, 20, 7), 200), [] {});
  auto fetching = loaded->engine->submit(greedy_request(prompt, 4), [] {});
  REQUIRE((other.ok() && fetching.ok()));
  for (int step = 0; step < 20; ++step) loaded->engine->step();
  std::vector<TokenEvent> events;
  (*other)->drain(events);
  CHECK(events.size() >= 15);
  events.clear();
  (*fetching)->drain(events);
  CHECK(events.empty());
  // A client may leave at that moment.
  const bool cancels = GENERATE(false, true);
  if (cancels) (*fetching)->cancel();
  loaded->engine->run_until_idle();
  (*fetching)->drain(events);
  REQUIRE_FALSE(events.empty());
  CHECK((events.back().finish == FinishReason::abort) == cancels);
  if (!cancels) CHECK(events.back().cached_tokens > 300);
  CHECK(loaded->engine->stats().kv_pages_free == loaded->engine->stats().kv_pages_total);
}

TEST_CASE("a hit from disk after a restart has the bits of a hit from the store") {
  const auto [format, encrypts] =
      GENERATE(table<std::string, bool>({{"fp16", false}, {"kivi2.5", false}, {"kivi2.5", true}}));
  CAPTURE(format, encrypts);
  const TemporaryFolder folder;
  EngineConfig config = config_of(format, PrefillMode::exact);
  config.kv_disk = folder.path() + "/pages";
  config.kv_disk_bytes = 1 << 30;
  if (encrypts) {
    config.kv_disk_key_file = folder.path() + "/key";
    folder.write("key", std::string(64, '7'));
    std::filesystem::permissions(config.kv_disk_key_file, std::filesystem::perms(0600));
  }
  std::vector<int32_t> prompt;
  Run hit;
  {
    const auto loaded = load_or_fail(config);
    prompt = prompt_of(*loaded, 700);
    run(*loaded, greedy_request(prompt, 40));
    hit = run(*loaded, greedy_request(prompt, 40));
    REQUIRE(hit.cached_tokens > 300);
    Request salted = greedy_request(prompt, 4);
    salted.cache_salt = "salt";
    CHECK(run(*loaded, salted).cached_tokens == 0);
  }
  {
    const auto loaded = load_or_fail(config);
    const Run from_disk = run(*loaded, greedy_request(prompt, 40));
    CHECK(from_disk.cached_tokens == hit.cached_tokens);
    CHECK(from_disk.output == hit.output);
    CHECK(loaded->engine->stats().tier.tokens_fetched_disk >= uint64_t(hit.cached_tokens));
    Request other = greedy_request(prompt, 4);
    other.cache_salt = "other salt";
    CHECK(run(*loaded, other).cached_tokens == 0);
  }
  // Other settings compute other numbers, so they share nothing.
  config.prefill_chunk_tokens = 300;
  CHECK(run(*load_or_fail(config), greedy_request(prompt, 4)).cached_tokens == 0);
}

TEST_CASE("files that were changed are dropped, and the tokens stay the same") {
  const TemporaryFolder folder;
  EngineConfig config = config_of("fp16", PrefillMode::exact);  // a hit has the bits of a miss
  config.kv_disk = folder.path() + "/pages";
  config.kv_disk_bytes = 1 << 30;
  std::vector<int32_t> prompt;
  Output expected;
  {
    const auto loaded = load_or_fail(config);
    prompt = prompt_of(*loaded, 500);
    expected = run(*loaded, greedy_request(prompt, 20)).output;
  }
  std::mt19937 random(1);
  int dropped = 0;
  for (int round = 0; round < 12; ++round) {
    for (const auto& entry : std::filesystem::directory_iterator(config.kv_disk)) {
      if (entry.path().extension() != ".block" || random() % 2) continue;
      const auto size = entry.file_size();
      if (random() % 4 == 0) {
        std::filesystem::resize_file(entry.path(), random() % size);
        continue;
      }
      std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
      file.seekg(std::streamoff(random() % size));
      const auto at = file.tellg();
      const char byte = char(file.get());
      file.seekp(at);
      file.put(char(byte ^ 0x10));
    }
    const auto loaded = load_or_fail(config);
    const Run again = run(*loaded, greedy_request(prompt, 20));
    CHECK(again.output == expected);
    dropped += int(loaded->engine->stats().tier.disk.read_failures);
  }
  CHECK(dropped > 10);
}
