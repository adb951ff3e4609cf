// SPDX-License-Identifier: Apache-2.0
// FakeRunner: a StepRunner that invents tokens, so that the scheduler, the engine and the front
// ends can be tried (and timed) without a model. A token is a pure function of the sequence's seed
// and its position, or of a script, or of the prompt: never of the company, as with the real
// runner.
#pragma once

#include <chrono>
#include <cmath>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "engine/step_runner.h"

namespace kivi::testing {

struct FakeRunnerOptions {
  enum class Tokens {
    hash,    // id = hash(seed, position) over [first_id, vocab_size)
    echo,    // the prompt again and again
    script,  // `script` again and again
  };
  int vocab_size = 1000;
  int first_id = 3;  // ids below it are not invented by `hash` (specials)
  Tokens tokens = Tokens::hash;
  std::vector<int32_t> script;
  std::chrono::microseconds step_delay{0};
  int64_t fail_at_step = -1;  // this step (from 0) fails
  int hidden = 8;             // channels of a hidden state
  int transfer_polls = 0;     // a batch of transfers is done after so many questions
  double page_seconds = 0;    // of a page's transfer; 0: not known
  bool asynchronous = false;  // steps are computed at launch and handed out at collect
};

class FakeRunner : public StepRunner {
 public:
  explicit FakeRunner(FakeRunnerOptions options) : options_(std::move(options)) {}

  void launch(const BatchPlan&) override {}

  void sample(const BatchPlan& plan) override {
    std::vector<StepResult>& results = in_flight_.emplace_back(plan.sequences.size());
    for (size_t i = 0; i < results.size(); ++i) fill(plan.sequences[i], results[i]);
  }

  bool asynchronous() const override { return options_.asynchronous; }

  void transfer(std::span<const KvTransfer> transfers) override {
    transfers_end_.emplace_back(transfer_polls_ + options_.transfer_polls, transfers.size());
  }
  uint64_t transfers_done() override {
    while (!transfers_end_.empty() && transfers_end_.front().first <= transfer_polls_) {
      transfer_seconds_ += options_.page_seconds * double(transfers_end_.front().second);
      transfers_end_.pop_front();
      ++transfers_done_;
    }
    ++transfer_polls_;
    return transfers_done_;
  }
  double transfer_seconds() const override { return transfer_seconds_; }

  Result<std::vector<StepResult>> collect() override {
    if (options_.step_delay.count() > 0) std::this_thread::sleep_for(options_.step_delay);
    std::vector<StepResult> results = std::move(in_flight_.front());
    in_flight_.pop_front();
    if (steps_++ == options_.fail_at_step)
      return Error{ErrorCode::internal, "the fake runner was told to fail at this step"};
    return results;
  }

  // Channel c of a token's hidden state: a small integer, so that sums are exact.
  static float hidden_of(int32_t id, int position, int c) {
    return float(int(mix(uint64_t(id) * 131 + uint64_t(position) * 7 + uint64_t(c)) % 9) - 4);
  }

  static uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 31)) * 0x7fb5d329728ea185u;
    x = (x ^ (x >> 27)) * 0x81dadef4bc2dd44du;
    return x ^ (x >> 33);
  }

 private:
  void fill(const PlannedSequence& part, StepResult& result) const {
    const Sequence& s = *part.sequence;
    const SamplingParams& p = s.request.sampling;
    const int end = part.past + part.count;
    if (part.scores_prompt)
      for (int position = part.past + 1; position <= end && position < s.prompt_tokens; ++position)
        result.scored.push_back(scored(s, s.tokens[size_t(position)], position, p.prompt_logprobs));
    if (part.hidden != HiddenRows::none) {
      result.hidden.assign(size_t(options_.hidden), 0);
      const int begin = part.hidden == HiddenRows::last ? end - 1 : part.past;
      for (int position = begin; position < end; ++position)
        for (int c = 0; c < options_.hidden; ++c)
          result.hidden[size_t(c)] += hidden_of(s.tokens[size_t(position)], position, c);
    }
    if (part.samples) result.token = scored(s, sample(s, end), end, p.logprobs);
  }

  // The next id that neither the sequence's bias nor its constraint forbids.
  int32_t sample(const Sequence& s, int position) const {
    std::span<const uint32_t> mask;
    int32_t id = invent(s, position);
    if (s.state == SequenceState::finished || int(s.tokens.size()) != position) return id;
    if (s.request.constraint != nullptr) mask = s.request.constraint->mask();
    while (forbidden(s, id) || !allowed(mask, id)) id = (id + 1) % options_.vocab_size;
    return id;
  }

  static bool allowed(std::span<const uint32_t> mask, int32_t id) {
    return mask.empty() || (mask[size_t(id) / 32] >> (id % 32) & 1) == 1;
  }

  int32_t invent(const Sequence& s, int position) const {
    const int output = position - s.prompt_tokens;
    switch (options_.tokens) {
      case FakeRunnerOptions::Tokens::echo:
        return s.tokens[size_t(output % s.prompt_tokens)];
      case FakeRunnerOptions::Tokens::script:
        return options_.script[size_t(output) % options_.script.size()];
      case FakeRunnerOptions::Tokens::hash:
        break;
    }
    const uint64_t hash = mix(s.seed + mix(uint64_t(position) + 1));
    return options_.first_id + int32_t(hash % uint64_t(options_.vocab_size - options_.first_id));
  }

  static bool forbidden(const Sequence& s, int32_t id) {
    for (const LogitBias& b : s.bias)
      if (b.id == id && std::isinf(b.bias)) return true;
    return false;
  }

  // Log probabilities that a test can foresee: the i-th largest is -(i + 1); the token's own comes
  // first, its own logprob is -1.
  SampledToken scored(const Sequence&, int32_t id, int, int logprobs) const {
    SampledToken token{.id = id};
    if (logprobs < 0) return token;
    token.logprob = -1;
    for (int i = 0; i < logprobs; ++i)
      token.top.push_back({(id + i) % options_.vocab_size, -float(i + 1)});
    return token;
  }

  const FakeRunnerOptions options_;
  std::deque<std::vector<StepResult>> in_flight_;
  int64_t steps_ = 0;
  // Of batches under way: their end, in questions asked, and their pages.
  std::deque<std::pair<int64_t, size_t>> transfers_end_;
  int64_t transfer_polls_ = 0;
  uint64_t transfers_done_ = 0;
  double transfer_seconds_ = 0;
};

// An engine over a FakeRunner with a store of `pages` pages (one layer, one head, 64 channels).
struct FakeEngineOptions {
  EngineConfig config;
  FakeRunnerOptions runner;
  KvFormat format{KvKind::kivi, 2, 2, 32, 128};
  int max_model_len = 2048;
  std::vector<int32_t> eos_token_ids = {2};
  int pages = 4096;
  int host_pages = 0;
};

inline std::unique_ptr<Engine> make_fake_engine(FakeEngineOptions options,
                                                std::unique_ptr<PieceStore> disk = nullptr) {
  EngineLimits model{options.runner.vocab_size, options.max_model_len, options.eos_token_ids};
  const KvLayout layout{options.format, {1, 1, 64}};
  const KvCapacity capacity{options.pages, options.config.max_num_seqs,
                            (options.config.prefill_staging_tokens + KvLayout::kStagingTokens - 1) /
                                KvLayout::kStagingTokens};
  KvTierSetup tier;
  tier.host_pages = options.host_pages;
  tier.secret = "secret";
  tier.disk = std::move(disk);
  return std::make_unique<Engine>(options.config, std::move(model), layout, capacity,
                                  std::make_unique<FakeRunner>(std::move(options.runner)),
                                  std::move(tier));
}

}  // namespace kivi::testing
