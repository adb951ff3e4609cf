// SPDX-License-Identifier: Apache-2.0
// The numbers after a hit of the prefix cache, on a real model: those of the sequence that left the
// tokens, bit by bit, and in mode stream those of a prompt that is computed as a whole.
#include <catch2/catch.hpp>

#include "tests/model/prompted_run.h"

using namespace kivi;

namespace {

EngineConfig config_of(const std::string& format, PrefillMode mode, int chunk) {
  EngineConfig config = test_config(any_model(), format);
  config.enable_prefix_caching = true;
  config.kivi_prefill = mode;
  config.prefill_chunk_tokens = chunk;
  return config;
}

}  // namespace

TEST_CASE("a sequence that is continued decodes as the one that left its tokens") {
  // By blocks of 64 tokens, of 128 tokens with R 128, and with sinks.
  const auto [format, residual] = GENERATE(table<std::string, int>(
      {{"fp16", 0}, {"fp8", 0}, {"kivi2", 32}, {"kivi4", 128}, {"kivi2.5", 32}, {"kivi3.5", 128}}));
  // One chunk, chunks that are staged, and mode stream after it has been left.
  const auto [mode, chunk] = GENERATE(table<PrefillMode, int>(
      {{PrefillMode::exact, 400}, {PrefillMode::exact, 96}, {PrefillMode::exact, 200}}));
  CAPTURE(format, residual, chunk);
  EngineConfig config = config_of(format, mode, chunk);
  config.kivi_residual_length = residual;
  const auto loaded = load_or_fail(config);
  const std::vector<int32_t> prompt = prompt_of(*loaded, 330);
  const Run first = run(*loaded, greedy_request(prompt, 200));
  CHECK(first.cached_tokens == 0);
  const KvLayout layout{loaded->served.kv_format, {1, 1, 64}};
  const PrefixBlocks blocks = PrefixBlocks::of(layout);
  // Continued at a boundary within the answer, with one token more: its row is that of a decode.
  const int last = blocks.end(blocks.whole(330 + 199) - 1);
  REQUIRE(last > 340);
  std::vector<int32_t> more = prompt;
  more.insert(more.end(), first.output.ids.begin(), first.output.ids.end());
  more.resize(size_t(last) + 1);
  const int left = 330 + 200 - int(more.size());
  const Run second = run(*loaded, greedy_request(more, left));
  CHECK(second.cached_tokens == last);
  const auto tail = [&](const auto& all) {
    return std::vector(all.end() - std::ptrdiff_t(left), all.end());
  };
  CHECK(second.output.ids == tail(first.output.ids));
  CHECK(second.output.logprobs == tail(first.output.logprobs));
  // And once more: the pages that the second one completed are those that the third one finds.
  const Run third = run(*loaded, greedy_request(more, left));
  CHECK(third.cached_tokens == last);
  CHECK(third.output == second.output);
}

TEST_CASE("in mode stream a hit has the numbers of a miss, bit by bit") {
  const std::string format = GENERATE("kivi2", "kivi2.5", "kivi4+s32");
  CAPTURE(format);
  EngineConfig config = config_of(format, PrefillMode::stream, 200);
  const auto loaded = load_or_fail(config);
  config.enable_prefix_caching = false;
  const auto plain = load_or_fail(config);
  std::vector<int32_t> prompt = prompt_of(*loaded, 700);
  const Run miss = run(*plain, greedy_request(prompt, 40));
  CHECK(miss.cached_tokens == 0);
  CHECK(run(*loaded, greedy_request(prompt, 40)).output == miss.output);
  const Run hit = run(*loaded, greedy_request(prompt, 40));
  CHECK(hit.cached_tokens > 400);
  CHECK(hit.output == miss.output);

  // A prompt of one chunk that leaves a checkpoint in its midst, then one that goes on from there.
  const std::vector<int32_t> begin = prompt_of(*loaded, 196, 1);
  run(*loaded, greedy_request(begin, 1));
  std::vector<int32_t> longer = begin;
  const std::vector<int32_t> rest = prompt_of(*loaded, 300, 2);
  longer.insert(longer.end(), rest.begin(), rest.end());
  const Run from_chunk = run(*loaded, greedy_request(longer, 40));
  CHECK(from_chunk.cached_tokens > 100);
  CHECK(from_chunk.output == run(*plain, greedy_request(longer, 40)).output);
}

TEST_CASE("in mode stream a hit has the bits of a miss wherever chunks end, and after answers") {
  EngineConfig config = config_of("kivi2", PrefillMode::stream, 200);
  const auto loaded = load_or_fail(config);
  config.enable_prefix_caching = false;
  const auto plain = load_or_fail(config);
  // Blocks are 64 tokens and chunks 192: a last chunk of up to 200 tokens has a boundary within.
  for (const int length : {768, 769, 772, 776, 777, 800}) {
    CAPTURE(length);
    const std::vector<int32_t> prompt = prompt_of(*loaded, length, length);
    const Output miss = run(*plain, greedy_request(prompt, 4)).output;
    CHECK(run(*loaded, greedy_request(prompt, 4)).output == miss);
    const Run hit = run(*loaded, greedy_request(prompt, 4));
    CHECK(hit.cached_tokens > 300);
    CHECK(hit.output == miss);
  }
  // A conversation: what decoding left of an answer must not stand for a prompt's tokens.
  std::vector<int32_t> chat = prompt_of(*loaded, 230, 3);
  const Run answer = run(*loaded, greedy_request(chat, 300));
  chat.insert(chat.end(), answer.output.ids.begin(), answer.output.ids.end());
  const std::vector<int32_t> rest = prompt_of(*loaded, 300, 4);
  chat.insert(chat.end(), rest.begin(), rest.end());
  const Output miss = run(*plain, greedy_request(chat, 20)).output;
  for (int again = 0; again < 3; ++again)
    CHECK(run(*loaded, greedy_request(chat, 20)).output == miss);
}

TEST_CASE("samples that share pages whose values came early are those that are computed alone",
          "[long]") {
  const auto [format, residual] = GENERATE(
      table<std::string, int>({{"kivi2", 32}, {"kivi4", 128}, {"kivi2.5", 32}, {"kivi2.5", 128}}));
  // One chunk and a few tokens behind the last boundary, or chunks that are staged and many tokens.
  const auto [chunk, length] = GENERATE(table<int, int>({{400, 326}, {96, 340}}));
  CAPTURE(format, residual, chunk, length);
  EngineConfig config = config_of(format, PrefillMode::exact, chunk);
  config.kivi_residual_length = residual;
  const auto alone = load_or_fail(config), together = load_or_fail(config);
  const std::vector<int32_t> prompt = prompt_of(*alone, length);
  std::vector<Request> requests;
  for (int i = 0; i < 5; ++i) {
    Request& request = requests.emplace_back(greedy_request(prompt, 2 * residual + 20));
    if (i == 0) continue;
    request.sampling.temperature = 1;
    request.sampling.seed = uint64_t(i);
  }
  const auto streams = together->engine->submit_all(requests, [](size_t) { return [] {}; });
  REQUIRE(streams.ok());
  together->engine->run_until_idle();
  for (size_t i = 0; i < requests.size(); ++i) {
    CAPTURE(i);
    std::vector<TokenEvent> events;
    REQUIRE((*streams)[i]->drain(events));
    Output output;
    for (const TokenEvent& e : events) {
      output.ids.push_back(e.id);
      output.logprobs.push_back(e.logprob);
    }
    const Run expected = run(*alone, requests[i]);
    CHECK(expected.cached_tokens == events.back().cached_tokens);
    CHECK(output == expected.output);
  }
  CHECK(together->engine->stats().prefix.hit > 4 * 200);
}

TEST_CASE("prompts that share their first tokens are computed side by side as alone") {
  const auto [format, mode] = GENERATE(table<std::string, PrefillMode>(
      {{"fp16", PrefillMode::exact}, {"kivi2.5", PrefillMode::stream}}));
  CAPTURE(format);
  EngineConfig config = config_of(format, mode, 200);
  const auto loaded = load_or_fail(config);
  config.enable_prefix_caching = false;
  const auto plain = load_or_fail(config);
  const std::vector<int32_t> system = prompt_of(*loaded, 450);
  std::vector<Request> requests;
  for (int i = 0; i < 6; ++i) {
    std::vector<int32_t> prompt = system;
    const std::vector<int32_t> own = prompt_of(*loaded, 60 + 20 * i, 10 + i);
    prompt.insert(prompt.end(), own.begin(), own.end());
    requests.push_back(greedy_request(prompt, 30));
  }
  std::vector<std::shared_ptr<TokenStream>> streams;
  for (const Request& request : requests)
    streams.push_back(loaded->engine->submit(request, [] {}).value());
  loaded->engine->run_until_idle();
  for (size_t i = 0; i < requests.size(); ++i) {
    std::vector<TokenEvent> events;
    REQUIRE(streams[i]->drain(events));
    Output together;
    for (const TokenEvent& e : events) {
      together.ids.push_back(e.id);
      together.logprobs.push_back(e.logprob);
    }
    CHECK(together == run(*plain, requests[i]).output);
  }
  CHECK(loaded->engine->stats().prefix.hit > 0);
}
