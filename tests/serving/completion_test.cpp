// SPDX-License-Identifier: Apache-2.0
// Completion over a real Engine whose runner invents tokens.
#include "engine/serving/completion.h"

#include <catch2/catch.hpp>
#include <condition_variable>
#include <map>
#include <random>
#include <set>
#include <thread>

#include "base/utf8.h"
#include "engine/limits.h"
#include "tests/engine/fake_runner.h"
#include "tests/engine/outcome.h"
#include "tests/serving/tales_tokenizer.h"

using namespace kivi;
using namespace kivi::testing;

namespace {

// Logprobs that depend on the sequence's seed, so that best_of has something to choose.
class SeedLogprobRunner : public FakeRunner {
 public:
  using FakeRunner::FakeRunner;
  void launch(const BatchPlan& plan) override {
    seeds_.clear();
    for (const PlannedSequence& part : plan.sequences) seeds_.push_back(part.sequence->seed);
    FakeRunner::launch(plan);
  }
  Result<std::vector<StepResult>> collect() override {
    auto results = FakeRunner::collect();
    for (size_t i = 0; results.ok() && i < results->size(); ++i) {
      (*results)[i].token.logprob = -float(mix(seeds_[i]) % 1000);
    }
    return results;
  }

 private:
  std::vector<uint64_t> seeds_;  // of the step's sequences
};

FakeEngineOptions engine_options() {
  FakeEngineOptions options;
  options.runner.vocab_size = 4096;
  return options;
}

// A model over an engine; without start() the test makes its steps.
struct Served {
  std::unique_ptr<Engine> engine;
  ServedModel model;
  explicit Served(FakeEngineOptions options = engine_options())
      : Served(make_fake_engine(std::move(options))) {}
  explicit Served(std::unique_ptr<Engine> e) : engine(std::move(e)) {
    model.tokenizer = &tales_tokenizer();
    model.engine = engine.get();
    model.max_model_len = engine->model().max_model_len;
  }
  std::shared_ptr<Completion> start(CompletionRequest request) {
    auto completion = Completion::start(model, std::move(request), [] {});
    if (!completion.ok()) FAIL(completion.error().message);
    return std::move(completion).value();
  }
};

CompletionRequest request_of(const std::string& prompt, int max_tokens) {
  CompletionRequest r;
  r.id = "cmpl-1";
  r.prompts = {prompt};
  r.sampling.max_tokens = max_tokens;
  r.sampling.seed = 11;
  return r;
}

struct Choice {
  std::string text;
  std::vector<ChunkToken> tokens;
  int prompt_tokens = 0, chunks = 0;
  std::optional<TextChunk> last;
  std::vector<int32_t> output_ids() const {
    std::vector<int32_t> ids;
    for (size_t i = size_t(prompt_tokens); i < tokens.size(); ++i) ids.push_back(tokens[i].id);
    return ids;
  }
};

void collect(const std::vector<TextChunk>& chunks, std::map<int, Choice>& choices) {
  for (const TextChunk& chunk : chunks) {
    Choice& c = choices[chunk.choice];
    REQUIRE(!c.last);
    REQUIRE(is_valid_utf8(chunk.text));
    c.text += chunk.text;
    c.tokens.insert(c.tokens.end(), chunk.tokens.begin(), chunk.tokens.end());
    c.prompt_tokens += chunk.prompt_tokens;
    ++c.chunks;
    if (chunk.finish) c.last = chunk;
  }
}

// Runs the engine step by step to the end, polling after each step.
std::map<int, Choice> run(Served& served, Completion& completion) {
  std::map<int, Choice> choices;
  for (bool done = false; !done;) {
    served.engine->step();
    std::vector<TextChunk> chunks;
    done = completion.poll(chunks);
    collect(chunks, choices);
  }
  return choices;
}

std::map<int, Choice> run(Served& served, CompletionRequest request) {
  const auto completion = served.start(std::move(request));
  return run(served, *completion);
}

int sum_tokens(const std::map<int, Choice>& choices) {
  int sum = 0;
  for (const auto& [index, c] : choices) sum += int(c.output_ids().size());
  return sum;
}

}  // namespace

TEST_CASE(
    "prompts x n choices come back each under its index, streamed or not, with the same text") {
  std::map<int, Choice> reference;
  for (const bool streaming : {true, false}) {
    Served served;
    CompletionRequest request = request_of("Once upon", 12);
    request.prompts.push_back("a king");
    request.prompts.push_back(std::vector<int32_t>{5, 6, 7});
    request.n = 3;
    request.streaming = streaming;
    const auto completion = served.start(request);
    const auto choices = run(served, *completion);
    REQUIRE(choices.size() == 9);
    for (const auto& [index, c] : choices) {
      CHECK(c.tokens.size() == 12);
      CHECK(completion->completion_tokens(index) == 12);
      CHECK(c.last->finish == FinishReason::length);
      CHECK((streaming ? c.chunks > 1 : c.chunks == 1));
      if (!streaming) CHECK(c.text == reference[index].text);
    }
    reference = choices;
    const Usage usage = completion->usage();
    CHECK(usage.completion_tokens == sum_tokens(choices));
    CHECK(usage.prompt_tokens == int(tales_tokenizer().encode("Once upon", true).size() +
                                     tales_tokenizer().encode("a king", true).size() + 3));
    CHECK(completion->prompt_ids(2) == std::vector<int32_t>{5, 6, 7});
    CHECK(completion->times().size() == 9);
    check_nothing_held(*served.engine);
  }
}

TEST_CASE("seeds: choice 0 is that of n = 1, the others differ, and all come again") {
  Served served;
  CompletionRequest request = request_of("Once", 8);
  const auto one = run(served, request);
  request.n = 4;
  const auto four = run(served, request);
  const auto again = run(served, request);
  CHECK(four.at(0).text == one.at(0).text);
  std::set<std::string> texts;
  for (const auto& [index, c] : four) {
    texts.insert(c.text);
    CHECK(again.at(index).text == c.text);
  }
  CHECK(texts.size() == 4);
}

TEST_CASE("the text is the prompt's and the output's tokens decoded, with echo and without") {
  Served served;
  for (const char* prompt : {"Once upon", "", "\U0001F44D "}) {
    CompletionRequest request = request_of(prompt, 20);
    request.streaming = true;
    const auto plain = run(served, request);
    request.echo = true;
    const auto echoed = run(served, request);
    CHECK(echoed.at(0).text == prompt + plain.at(0).text);
    CHECK(echoed.at(0).output_ids() == plain.at(0).output_ids());
    const auto prompt_ids = tales_tokenizer().encode(prompt, true);
    CHECK(echoed.at(0).prompt_tokens == int(prompt_ids.size()));
    auto ids = prompt_ids;
    for (int32_t id : plain.at(0).output_ids()) ids.push_back(id);
    CHECK(echoed.at(0).text == tales_tokenizer().decode(ids, true));
  }
}

TEST_CASE("echo and logprobs: the prompt's tokens first (null for the first), then the output's") {
  for (const int max_tokens : {0, 1, 5}) {
    Served served;
    CompletionRequest request = request_of("Once upon a time", max_tokens);
    request.echo = true;
    request.sampling.logprobs = 1;
    const auto completion = served.start(request);
    const auto choices = run(served, *completion);
    const Choice& c = choices.at(0);
    const auto& prompt = completion->prompt_ids(0);
    REQUIRE(c.tokens.size() == prompt.size() + size_t(max_tokens));
    CHECK(!c.tokens[0].logprob);
    for (size_t i = 0; i < c.tokens.size(); ++i) {
      if (i < prompt.size()) CHECK(c.tokens[i].id == prompt[i]);
      if (i == 0) continue;
      CHECK(c.tokens[i].logprob == -1);
      REQUIRE(c.tokens[i].top.size() == 1);
      CHECK(c.tokens[i].top[0].second.id == c.tokens[i].id);
      CHECK(c.tokens[i].top[0].second.logprob == -1);
    }
    CHECK(c.last->finish == FinishReason::length);
    CHECK(completion->usage().completion_tokens == max_tokens);
  }
}

TEST_CASE("a long prompt in several chunks is scored whole, once") {
  FakeEngineOptions options = engine_options();
  options.config.prefill_chunk_tokens = 64;
  Served served(std::move(options));
  CompletionRequest request = request_of("", 1);
  std::vector<int32_t> ids;
  for (int i = 0; i < 300; ++i) ids.push_back(3 + i);
  request.prompts = {ids};
  request.echo = true;
  request.sampling.logprobs = 0;
  const auto choices = run(served, request);
  const Choice& c = choices.at(0);
  REQUIRE(c.tokens.size() == 301);
  for (size_t i = 1; i < 301; ++i) REQUIRE(c.tokens[i].logprob == -1);
}

TEST_CASE("best_of: the n with the largest mean logprob, the best first; all count in usage") {
  FakeEngineOptions o = engine_options();
  Served served(std::make_unique<Engine>(
      o.config, EngineLimits{4096, 2048, {2}}, KvLayout{o.format, {1, 1, 64}},
      KvCapacity{4096, o.config.max_num_seqs, 64}, std::make_unique<SeedLogprobRunner>(o.runner)));
  CompletionRequest request = request_of("Once", 6);
  request.prompts.push_back("upon");
  request.n = request.best_of = 5;
  request.sampling.logprobs = 0;
  const auto all = run(served, request);
  REQUIRE(all.size() == 10);
  request.n = 2;
  request.sampling.logprobs = -1;
  const auto completion = served.start(request);
  const auto best = run(served, *completion);
  REQUIRE(best.size() == 4);
  for (int prompt = 0; prompt < 2; ++prompt) {
    std::vector<std::pair<float, std::string>> ranked;
    for (int k = 0; k < 5; ++k) {
      const Choice& c = all.at(prompt * 5 + k);
      ranked.push_back({-*c.tokens[0].logprob, c.text});
    }
    std::stable_sort(ranked.begin(), ranked.end());
    REQUIRE(ranked[0].first < ranked[1].first);
    CHECK(best.at(prompt * 2).text == ranked[0].second);
    CHECK(best.at(prompt * 2 + 1).text == ranked[1].second);
    CHECK(!best.at(prompt * 2).tokens[0].logprob);
  }
  CHECK(completion->usage().completion_tokens == 60);
  CHECK(completion->completion_tokens(3) == 6);
  check_nothing_held(*served.engine);
}

TEST_CASE("of equally likely choices the first ones are the best") {
  Served served;  // every token has the logprob -1
  CompletionRequest request = request_of("Once", 6);
  request.n = request.best_of = 5;
  const auto all = run(served, request);
  request.n = 2;
  const auto best = run(served, request);
  REQUIRE(best.size() == 2);
  for (const int index : {0, 1}) CHECK(best.at(index).text == all.at(index).text);
}

TEST_CASE("a reader is told once of all choices that have news") {
  Served served;
  CompletionRequest request = request_of("Once", 6);
  request.n = 4;
  request.streaming = true;
  int told = 0;
  const auto completion = Completion::start(served.model, request, [&told] { ++told; });
  REQUIRE(completion.ok());
  for (int step = 0; step < 3; ++step) served.engine->step();
  CHECK(told == 1);
  std::vector<TextChunk> chunks;
  CHECK_FALSE((*completion)->poll(chunks));
  served.engine->step();
  CHECK(told == 2);
}

TEST_CASE("allowed token ids bind without any other rule") {
  Served served;
  CompletionRequest request = request_of("Once", 20);
  request.allowed_token_ids = {40, 50};
  for (const int32_t id : run(served, request).at(0).output_ids()) CHECK((id == 40 || id == 50));
}

TEST_CASE("a stop string across tokens ends the choice at once and frees the engine a step later") {
  const auto script = tales_tokenizer().encode("the king said: enough of this tale ", false);
  for (const bool streaming : {true, false}) {
    FakeEngineOptions options = engine_options();
    options.runner.tokens = FakeRunnerOptions::Tokens::script;
    options.runner.script = script;
    Served served(std::move(options));
    CompletionRequest request = request_of("So", 1000);
    request.stop = {"never", "nough o"};
    request.streaming = streaming;
    const auto completion = served.start(request);
    const auto choices = run(served, *completion);
    const Choice& c = choices.at(0);
    CHECK(c.text == " the king said: e");
    CHECK(c.last->finish == FinishReason::stop);
    CHECK(std::get<std::string>(c.last->stop_reason) == "nough o");
    CHECK(completion->usage().completion_tokens == int(c.tokens.size()));
    CHECK(c.output_ids() == std::vector(script.begin(), script.begin() + int64_t(c.tokens.size())));
    // One more token at most was computed after the match.
    CHECK(served.engine->stats().generation_tokens <= c.tokens.size() + 1);
    CHECK(served.engine->stats().finished[int(FinishReason::stop)] == 1);
    CHECK(completion->times().size() == 1);
    check_nothing_held(*served.engine);
  }
}

TEST_CASE("EOS and stop ids end a choice; stop ids are named as the reason") {
  const auto script = tales_tokenizer().encode("the king said", false);
  for (const bool eos : {true, false}) {
    FakeEngineOptions options = engine_options();
    options.runner.tokens = FakeRunnerOptions::Tokens::script;
    options.runner.script = script;
    if (eos) options.eos_token_ids = {script[1]};
    Served served(std::move(options));
    CompletionRequest request = request_of("So", 50);
    if (!eos) request.sampling.stop_token_ids = {script[1]};
    const auto choices = run(served, request);
    CHECK(choices.at(0).text == " the");
    CHECK(choices.at(0).tokens.size() == 2);
    CHECK(choices.at(0).last->finish == FinishReason::stop);
    if (eos) {
      CHECK(choices.at(0).last->stop_reason.index() == 0);
    } else {
      CHECK(std::get<int32_t>(choices.at(0).last->stop_reason) == script[1]);
    }
  }
}

TEST_CASE("truncate_prompt_tokens keeps the last tokens; add_special_tokens decides about BOS") {
  Served served;
  CompletionRequest request = request_of("Once upon a time", 1);
  const auto ids = tales_tokenizer().encode("Once upon a time", true);
  CHECK(served.start(request)->prompt_ids(0) == ids);
  request.add_special_tokens = false;
  CHECK(served.start(request)->prompt_ids(0) == std::vector(ids.begin() + 1, ids.end()));
  request.truncate_prompt_tokens = 2;
  CHECK(served.start(request)->prompt_ids(0) == std::vector(ids.end() - 2, ids.end()));
  request.truncate_prompt_tokens = 100;
  CHECK(served.start(request)->prompt_ids(0).size() == ids.size() - 1);
  served.engine->run_until_idle();
  check_nothing_held(*served.engine);  // all four were dropped
}

TEST_CASE("what is wrong with a request is said with the API's field") {
  Served served;
  const auto field_of = [&](auto change) {
    CompletionRequest request = request_of("Once", 4);
    change(request);
    const auto completion = Completion::start(served.model, request, [] {});
    REQUIRE(!completion.ok());
    CHECK(!completion.error().message.empty());
    return completion.error().field;
  };
  using R = CompletionRequest&;
  using Ids = std::vector<int32_t>;
  CHECK(field_of([](R r) { r.prompts.clear(); }) == "prompt");
  CHECK(field_of([](R r) { r.prompts.assign(size_t(kMaxPromptsPerRequest) + 1, "a"); }) ==
        "prompt");
  CHECK(field_of([](R r) { r.prompts = {Ids{}}; }) == "prompt");
  CHECK(field_of([](R r) { r.prompts = {Ids{1, 4096}}; }) == "prompt");
  CHECK(field_of([](R r) { r.prompts = {Ids{1, -1}}; }) == "prompt");
  CHECK(field_of([](R r) { r.prompts = {"fine", Ids{INT32_MIN}}; }) == "prompt");
  CHECK(field_of([](R r) { r.prompts = {""}, r.add_special_tokens = false; }) == "prompt");
  CHECK(field_of([](R r) { r.prompts = {std::string(10'000'000, 'a')}; }) == "prompt");
  CHECK(field_of([](R r) { r.prompts = {std::string(9000, '?')}; }) == "prompt");
  CHECK(field_of([](R r) { r.n = 0; }) == "n");
  CHECK(field_of([](R r) { r.n = kMaxChoices + 1; }) == "n");
  CHECK(field_of([](R r) { r.n = 3, r.best_of = 2; }) == "best_of");
  CHECK(field_of([](R r) { r.best_of = kMaxChoices + 1; }) == "best_of");
  CHECK(field_of([](R r) { r.best_of = 2, r.streaming = true; }) == "best_of");
  CHECK(field_of([](R r) { r.stop = {"a", ""}; }) == "stop");
  CHECK(field_of([](R r) { r.stop = {"\xC3"}; }) == "stop");
  CHECK(field_of([](R r) { r.stop.assign(size_t(kMaxStopStrings) + 1, "a"); }) == "stop");
  CHECK(field_of([](R r) { r.stop = {std::string(size_t(kMaxStopStringBytes) + 1, 'a')}; }) ==
        "stop");
  CHECK(field_of([](R r) { r.truncate_prompt_tokens = 0; }) == "truncate_prompt_tokens");
  CHECK(field_of([](R r) { r.sampling.prompt_logprobs = 1; }) == "prompt_logprobs");
  CHECK(field_of([](R r) { r.sampling.temperature = -1; }) == "temperature");
  CHECK(field_of([](R r) { r.sampling.logprobs = 1000; }) == "logprobs");
  CHECK(served.engine->stats().waiting == 0);
}

TEST_CASE("room is found for all of a request's sequences or for none") {
  FakeEngineOptions options = engine_options();
  options.config.max_num_queued_reqs = 4;
  options.config.max_num_seqs = 4;
  Served served(std::move(options));
  CompletionRequest one = request_of("Once", 4);
  auto waiting = Completion::start(served.model, one, [] {});
  REQUIRE(waiting.ok());
  CompletionRequest request = request_of("Once", 4);
  request.prompts.assign(4, "Once");
  const auto refused = Completion::start(served.model, request, [] {});
  REQUIRE(!refused.ok());
  CHECK(refused.error().code == ErrorCode::resource_exhausted);
  CHECK(served.engine->stats().waiting == 1);
  served.engine->run_until_idle();
  CHECK(served.engine->stats().finished[int(FinishReason::abort)] == 0);
  CHECK(served.engine->stats().generation_tokens == 4);
  waiting = Error{};
  check_nothing_held(*served.engine);
  // Larger than the queue, but not than queue and batch: taken when nothing waits.
  request.prompts.assign(8, "Once");
  CHECK(run(served, request).size() == 8);
  check_nothing_held(*served.engine);
  request.prompts.assign(4, "Once");
  CHECK(run(served, request).size() == 4);
}

TEST_CASE("cancel, and destruction, end the engine's requests with abort") {
  for (const bool destroy : {false, true}) {
    Served served;
    CompletionRequest request = request_of("Once", 1000);
    request.n = 3;
    request.streaming = true;
    auto completion = served.start(request);
    for (int i = 0; i < 3; ++i) served.engine->step();
    std::vector<TextChunk> chunks;
    CHECK(!completion->poll(chunks));
    if (destroy) {
      completion.reset();
      served.engine->run_until_idle();
    } else {
      completion->cancel();
      const auto choices = run(served, *completion);
      for (const auto& [index, c] : choices) CHECK(c.last->finish == FinishReason::abort);
      CHECK(choices.size() == 3);
    }
    CHECK(served.engine->stats().finished[int(FinishReason::abort)] == 3);
    check_nothing_held(*served.engine);
  }
}

TEST_CASE("a passed deadline ends a choice with abort and says so; a failed step with error") {
  Served served;
  CompletionRequest request = request_of("Once", 10);
  request.deadline = Clock::now() - std::chrono::seconds(1);
  const auto late = run(served, request);
  CHECK(late.at(0).last->finish == FinishReason::abort);
  REQUIRE(late.at(0).last->error);
  CHECK(late.at(0).last->error->code == ErrorCode::deadline);

  FakeEngineOptions options = engine_options();
  options.runner.fail_at_step = 2;
  Served failing(std::move(options));
  const auto failed = run(failing, request_of("Once", 10));
  CHECK(failed.at(0).last->finish == FinishReason::error);
  REQUIRE(failed.at(0).last->error);
  CHECK(failed.at(0).tokens.size() == 2);
  check_nothing_held(*failing.engine);
}

TEST_CASE("a completion may outlive its engine") {
  std::shared_ptr<Completion> completion;
  {
    Served served;
    completion = served.start(request_of("Once", 10));
    served.engine->step();
  }
  std::vector<TextChunk> chunks;
  CHECK(completion->poll(chunks));
  REQUIRE(chunks.size() == 1);
  CHECK(chunks[0].finish == FinishReason::abort);
  completion->cancel();
}

namespace {

// A reader as a front end has it: woken by notify, never polling otherwise.
struct Waker {
  std::mutex mutex;
  std::condition_variable condition;
  bool woken = false;
  void wake() {
    const std::lock_guard lock(mutex);
    woken = true;
    condition.notify_one();
  }
  bool wait() {
    std::unique_lock lock(mutex);
    const bool in_time = condition.wait_for(lock, std::chrono::seconds(20), [&] { return woken; });
    woken = false;
    return in_time;
  }
};

struct Counts {
  std::atomic<int> delivered{0}, counted{0}, finished{0}, dropped{0}, lost{0};
};

void read_one(Served& served, std::mt19937& random, Counts& counts) {
  CompletionRequest request = request_of("Once upon a time", 1 + int(random() % 60));
  const int drop = random() % 2 ? int(random() % 3) : -1;  // after so many wake-ups
  if (drop >= 0) request.sampling.max_tokens = 1500;
  request.sampling.seed = random();
  request.n = 1 + int(random() % 3);
  request.streaming = random() % 2;
  request.echo = random() % 4 == 0;
  if (random() % 2) request.stop = {"e", "\uFFFD\uFFFD"};
  auto waker = std::make_shared<Waker>();
  auto started = Completion::start(served.model, request, [waker] { waker->wake(); });
  if (!started.ok()) return void(++counts.lost);
  std::shared_ptr<Completion> completion = std::move(started).value();
  std::map<int, int> tokens;
  for (int wakes = 0;; ++wakes) {
    if (wakes == drop) {
      ++counts.dropped;
      if (random() % 2) return;  // destruction
      std::thread([completion] { completion->cancel(); }).join();
    }
    if (!waker->wait()) return void(++counts.lost);
    std::vector<TextChunk> chunks;
    const bool done = completion->poll(chunks);
    for (const TextChunk& chunk : chunks) {
      tokens[chunk.choice] += int(chunk.tokens.size()) - chunk.prompt_tokens;
    }
    if (done) break;
  }
  for (int c = 0; c < request.n; ++c) {
    counts.lost += tokens[c] != completion->completion_tokens(c);
    counts.delivered += tokens[c];
  }
  counts.counted += completion->usage().completion_tokens;
  ++counts.finished;
}

}  // namespace

TEST_CASE("many readers at once, half of them gone midway: nothing is lost, nothing is left") {
  FakeEngineOptions options = engine_options();
  options.runner.asynchronous = GENERATE(false, true);
  options.config.max_num_seqs = 32;
  Served served(std::move(options));
  served.engine->start();
  Counts counts;
  std::vector<std::thread> readers;
  for (int t = 0; t < 8; ++t) {
    readers.emplace_back([&, t] {
      std::mt19937 random(unsigned(100 + t));
      for (int i = 0; i < 40; ++i) read_one(served, random, counts);
    });
  }
  for (auto& reader : readers) reader.join();
  CHECK(counts.lost == 0);
  CHECK(counts.finished > 160);
  CHECK(counts.dropped > 30);  // a third of a half is dropped before its first token
  CHECK(counts.delivered == counts.counted);
  REQUIRE(served.engine->drain(std::chrono::seconds(20)));
  check_nothing_held(*served.engine);
}
