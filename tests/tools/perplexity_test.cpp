// Perplexity through the engine: the protocol, and figures on a held-out sample.
#include "tools/perplexity.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <fstream>
#include <sstream>

#include "engine/load.h"

namespace kivi {

namespace {

// Four public-domain stories that no demo model has seen (chapters of Glinda of Oz, The Adventures
// of Buster Bear and The Light Princess; see models/README.md).
std::string sample() {
  std::ifstream file(std::string(KIVI_SOURCE_DIR) + "/tests/data/heldout_sample.txt");
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::unique_ptr<LoadedModel> load(const std::string& format, int chunk) {
  EngineConfig config;
  config.model = std::string(KIVI_SOURCE_DIR) + "/models/tales-llama";
  config.device = "cpu";
  config.kv_cache_dtype = format;
  config.kivi_residual_length = 32;
  config.kivi_prefill = PrefillMode::stream;
  config.prefill_chunk_tokens = chunk;
  config.max_num_batched_tokens = 512;
  config.kv_cache_memory_bytes = 64 << 20;
  auto loaded = load_model(config, {});
  if (!loaded.ok()) FAIL(loaded.error().message);
  return std::move(loaded).value();
}

Perplexity measure(const std::string& format, int chunk, int window, int windows) {
  const auto model = load(format, chunk);
  const auto ids = windows_of(stories_of(sample()), *model->tokenizer, window, windows);
  const auto measured = measure_perplexity(*model->engine, ids, {});
  if (!measured.ok()) FAIL(measured.error().message);
  CHECK(measured->tokens == int64_t(windows) * (window - 1));
  return *measured;
}

}  // namespace

TEST_CASE("Stories are what stands between marks, stripped, and longer than 200 characters") {
  const std::string story(201, 'a');
  std::string umlauts;  // 200 characters, 400 bytes
  for (int i = 0; i < 200; ++i) umlauts += "\xc3\xa4";
  CHECK(stories_of("").empty());
  CHECK(stories_of(std::string(200, 'a')).empty());
  CHECK(stories_of(story) == std::vector<std::string>{story});
  CHECK(stories_of(umlauts).empty());
  CHECK(stories_of("<|story|>\n\n " + story + " \n<|story|>short<|story|>" + umlauts + "b") ==
        std::vector<std::string>{story, umlauts + "b"});
  CHECK(stories_of(sample()).size() == 12);
}

TEST_CASE("Windows are consecutive ids of BOS, story, EOS; the rest is left out") {
  const auto model = load("fp16", 64);
  const Tokenizer& tokenizer = *model->tokenizer;
  const std::string one(201, 'a'), two(300, 'b');
  std::vector<int32_t> all;
  for (const std::string& story : {one, two}) {
    all.push_back(1);
    const std::vector<int32_t> ids = tokenizer.encode(story, false);
    all.insert(all.end(), ids.begin(), ids.end());
    all.push_back(2);
  }
  const auto windows = windows_of({one, two}, tokenizer, 16, 0);
  REQUIRE(windows.size() == all.size() / 16);
  std::vector<int32_t> joined;
  for (const auto& window : windows) joined.insert(joined.end(), window.begin(), window.end());
  CHECK(std::equal(joined.begin(), joined.end(), all.begin()));
  CHECK(windows_of({one, two}, tokenizer, 16, 1).size() == 1);
  CHECK(windows_of({one}, tokenizer, 1 << 20, 0).empty());
}

TEST_CASE("The loss on the held-out sample is the recorded one, whatever the chunks") {
  // Measured with this program, which gives Transformers' loss on the whole held-out text
  // (docs/benchmarks/perplexity.md).
  constexpr double kRecorded = 3.17505;
  const Perplexity one = measure("fp16", 256, 512, 4), other = measure("fp16", 100, 512, 4);
  CHECK(one.nll == Approx(kRecorded).epsilon(0.002));
  CHECK(other.nll == Approx(kRecorded).epsilon(0.002));
  CHECK(mean_change(one, other) < 1e-3);
}

TEST_CASE("Fewer bits change more, and the perplexity stays near that of fp16") {
  // Chunks of one token read the history from the store, as decoding does.
  constexpr int kWindow = 256, kWindows = 4;
  const Perplexity fp16 = measure("fp16", 256, kWindow, kWindows);
  const Perplexity fp8 = measure("fp8", 1, kWindow, kWindows);
  const Perplexity kivi4 = measure("kivi4", 1, kWindow, kWindows);
  const Perplexity kivi2 = measure("kivi2", 1, kWindow, kWindows);
  CAPTURE(fp16.nll, fp8.nll, kivi4.nll, kivi2.nll);
  const double fp8_change = mean_change(fp8, fp16), kivi4_change = mean_change(kivi4, fp16),
               kivi2_change = mean_change(kivi2, fp16);
  CAPTURE(fp8_change, kivi4_change, kivi2_change);
  CHECK(fp8_change > 1e-4);
  CHECK(fp8_change < 0.06);
  CHECK(kivi4_change > 1e-3);
  CHECK(kivi4_change < 0.03);
  CHECK(kivi2_change > 2 * kivi4_change);
  CHECK(kivi2_change < 0.2);
  CHECK(std::abs(kivi4.nll - fp16.nll) < 0.01);
  CHECK(std::abs(kivi2.nll - fp16.nll) < 0.05);
}

}  // namespace kivi
