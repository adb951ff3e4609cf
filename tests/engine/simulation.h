// SPDX-License-Identifier: Apache-2.0
// What the simulations of the scheduler and of the engine share: randomness from a seed, a store
// that remembers what was written where, and the seeds to run.
//
// Environment: KIVI_SIMULATION_SEED=N runs that seed alone. KIVI_SIMULATION_SECONDS=S runs new
// seeds, from a random one on, for so long. A seed that fails is printed with its whole world.
#pragma once

#include <algorithm>
#include <catch2/catch.hpp>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "engine/batch_plan.h"
#include "engine/kv_cache.h"
#include "engine/sequence.h"
#include "kernels/kv_codec.h"

namespace kivi::testing {

inline void expect(bool condition, const char* what) {
  if (!condition) throw std::runtime_error(what);
}

using Random = std::mt19937;
inline int between(Random& random, int low, int high) {
  return std::uniform_int_distribution(low, high)(random);
}

// What stands where in one region: (order of the sequence, position), by page and offset.
class Region {
 public:
  using Token = std::pair<uint64_t, int>;
  Region(int pages, int page_tokens)
      : page_tokens_(page_tokens), tokens_(size_t(pages) * size_t(page_tokens), Token{~0ull, -1}) {}
  Token& at(const std::vector<int32_t>& pages, int position) {
    return tokens_[size_t(pages.at(size_t(position / page_tokens_))) * size_t(page_tokens_) +
                   size_t(position % page_tokens_)];
  }

 private:
  int page_tokens_;
  std::vector<Token> tokens_;
};

// The store as it treats keys: pages, residual rows and staging pages remember which token of which
// sequence was written where. Every planned row must find its whole history there.
class SimulatedStore {
 public:
  SimulatedStore(const KvLayout& layout, const KvCapacity& capacity)
      : format_(layout.format),
        pages_(capacity.pages, layout.page_tokens()),
        residual_(capacity.slots, std::max(1, layout.format.residual)),
        sinks_(capacity.slots, std::max(1, layout.format.sinks)),
        staging_(capacity.staging_pages, KvLayout::kStagingTokens) {}

  // Reads every part's history and writes its tokens, as the kernels would. Throws where a part
  // does not find its history.
  void compute(const BatchPlan& plan) {
    for (const PlannedSequence& part : plan.sequences) {
      const Sequence& s = *part.sequence;
      const SequenceKv& kv = s.kv;
      const bool from_staging = part.mode != KvMode::append;
      for (int t = 0; t < part.past; ++t) {
        const int position = t - format_.sinks;
        const Region::Token& token = from_staging   ? staging_.at(kv.staging_pages, t)
                                     : position < 0 ? sinks_.at({kv.slot}, t)
                                     : position < keys_paged(format_, part.past)
                                         ? pages_.at(kv.pages, position)
                                         : residual_row(kv, position);
        expect(token == Region::Token{s.order, t}, "the history is where it was written");
      }
      const int begin = part.mode == KvMode::seal ? 0 : part.past;
      for (int t = begin; t < part.past + part.count; ++t) {
        if (lose_next_write_ && t >= s.prompt_tokens) {  // it will be read by the next token
          lose_next_write_ = false;
          lost_ = true;
        } else if (part.mode == KvMode::stage) {
          staging_.at(kv.staging_pages, t) = {s.order, t};
        } else {
          append(s, t);
        }
      }
    }
  }

  // A fault for canaries: the next output token that is computed is not written.
  void lose_next_write() { lose_next_write_ = true; }
  bool lost_a_write() const { return lost_; }

 private:
  Region::Token& residual_row(const SequenceKv& kv, int position) {
    return residual_.at({kv.slot}, position % format_.residual);
  }
  void append(const Sequence& s, int t) {
    if (format_.kind != KvKind::kivi) {
      pages_.at(s.kv.pages, t) = {s.order, t};
      return;
    }
    const int position = t - format_.sinks;
    if (position < 0) {
      sinks_.at({s.kv.slot}, t) = {s.order, t};
      return;
    }
    residual_row(s.kv, position) = {s.order, t};
    const int quantized = keys_paged(format_, t + 1);
    for (int i = std::max(0, position + 1 - format_.residual); i < quantized; ++i)
      pages_.at(s.kv.pages, i) = residual_row(s.kv, i);
  }

  KvFormat format_;
  Region pages_, residual_, sinks_, staging_;
  bool lose_next_write_ = false;
  bool lost_ = false;
};

// Runs `world` for the seeds 1 to `seeds`, or for those that the environment names. True: all
// seeds were run, so that what they reach together may be judged.
inline bool for_each_seed(uint32_t seeds, const std::function<void(uint32_t seed)>& world) {
  if (const char* one = std::getenv("KIVI_SIMULATION_SEED")) {
    world(uint32_t(std::stoul(one)));
    return false;
  }
  if (const char* seconds = std::getenv("KIVI_SIMULATION_SECONDS")) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(std::stol(seconds));
    const uint32_t first = std::random_device{}();
    uint32_t seed = first;
    for (; std::chrono::steady_clock::now() < end; ++seed) world(seed);
    WARN("ran " << seed - first << " seeds from " << first << " on");
    return false;
  }
  for (uint32_t seed = 1; seed <= seeds; ++seed) world(seed);
  return true;
}

}  // namespace kivi::testing
