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
#include <map>
#include <random>
#include <set>
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

// The store: pages (keys and values apart), residual rows, sinks and staging pages remember which
// token of which sequence was written where, and copies carry that along. Every planned row must
// find its whole history there: tokens of its own sequence, or of one with the same first tokens.
class SimulatedStore {
 public:
  SimulatedStore(const KvLayout& layout, const KvCapacity& capacity)
      : layout_(layout),
        format_(layout.format),
        slab_pages_(PrefixBlocks::of(layout).slab_pages),
        keys_(capacity.pages, layout.page_tokens()),
        values_(capacity.pages, layout.page_tokens()),
        residual_(capacity.slots, std::max(1, layout.format.residual)),
        sinks_(capacity.slots, std::max(1, layout.format.sinks)),
        staging_(capacity.staging_pages, KvLayout::kStagingTokens),
        pieces_(size_t(capacity.pages)) {}

  // Makes the step's copies, reads every part's history and writes its tokens, as the kernels
  // would. Throws where a part does not find its history.
  void compute(const BatchPlan& plan) {
    // A prompt that is computed layer by layer is all there after its last step.
    if (!plan.layerwise.empty() && !plan.sequences.at(0).completes) return;
    for (const PlannedSequence& part : plan.sequences)
      tokens_[part.sequence->order] = part.sequence->tokens;
    expect_written_pages_have_one_holder(plan);
    for (const KvCopy& c : plan.copies_before) copy(c);
    for (const PlannedSequence& part : plan.sequences) check_history(part);
    for (const PlannedCapture& capture : plan.captures) {
      const PlannedSequence& part = plan.sequences.at(size_t(capture.planned));
      expect(capture.tokens > part.past && capture.tokens <= part.past + part.count,
             "a capture is of a token that is computed");
      const int begin = part.mode == KvMode::append ? part.past : 0;
      for (int t = begin; t < capture.tokens; ++t) append(*part.sequence, t, capture.slot);
    }
    for (const PlannedSequence& part : plan.sequences) write(part);
    for (const KvCopy& c : plan.copies_after) copy(c);
    copies_ += int64_t(plan.copies_before.size() + plan.copies_after.size());
    captures_ += int64_t(plan.captures.size());
  }

  // A fault for canaries: the next output token that is computed is not written.
  void lose_next_write() { lose_next_write_ = true; }
  bool lost_a_write() const { return lost_; }
  int64_t copies() const { return copies_; }
  int64_t captures() const { return captures_; }
  int64_t foreign_reads() const { return foreign_reads_; }

 private:
  struct Piece {
    int index = -1;
    std::vector<Region::Token> rows;  // of residual and sinks
  };

  void check_history(const PlannedSequence& part) {
    const Sequence& s = *part.sequence;
    const SequenceKv& kv = s.kv;
    std::map<uint64_t, int> common;  // first tokens that another sequence shares, by order
    for (int t = 0; t < part.past; ++t)
      for (const Side side : {Side::key, Side::value}) {
        const int position = t - format_.sinks;
        const Region::Token& token =
            part.mode != KvMode::append ? staging_.at(kv.staging_pages, t)
            : position < 0              ? sinks_.at({kv.slot}, t)
            : position < tokens_paged(format_, part.past, side)
                ? (side == Side::key ? keys_ : values_).at(kv.pages, position)
                : residual_row(kv.slot, position);
        if (token == Region::Token{s.order, t}) continue;
        const auto [it, is_new] = common.try_emplace(token.first, 0);
        if (is_new) it->second = common_tokens(token.first, s);
        expect(token.second == t && t < it->second, "the history is where it was written");
        ++foreign_reads_;
      }
  }

  int common_tokens(uint64_t order, const Sequence& s) const {
    const auto other = tokens_.find(order);
    if (other == tokens_.end()) return 0;
    const std::vector<int32_t>& a = other->second;
    size_t i = 0;  // a token that was not known yet when it was computed may be any
    while (i < std::min(a.size(), s.tokens.size()) && (a[i] == s.tokens[i] || a[i] < 0)) ++i;
    return int(i);
  }

  // A page that the step writes is held by no other sequence of the step.
  void expect_written_pages_have_one_holder(const BatchPlan& plan) const {
    std::map<int32_t, int> holders;
    for (const PlannedSequence& part : plan.sequences)
      for (const int32_t page : part.sequence->kv.pages) ++holders[page];
    for (const PlannedSequence& part : plan.sequences) {
      const SequenceKv& kv = part.sequence->kv;
      if (part.mode != KvMode::append) continue;
      const size_t filled = size_t(values_paged(format_, part.past) / layout_.page_tokens());
      for (size_t i = filled; i < kv.pages.size(); ++i)
        expect(holders[kv.pages[i]] == 1, "a page that is written has one holder");
    }
  }

  void write(const PlannedSequence& part) {
    const Sequence& s = *part.sequence;
    const int begin = part.mode == KvMode::seal ? 0 : part.past;
    for (int t = begin; t < part.past + part.count; ++t) {
      if (lose_next_write_ && t >= s.prompt_tokens) {  // it will be read by the next token
        lose_next_write_ = false;
        lost_ = true;
      } else if (part.mode == KvMode::stage) {
        staging_.at(s.kv.staging_pages, t) = {s.order, t};
      } else {
        append(s, t, s.kv.slot);
      }
    }
  }

  Region::Token& residual_row(int32_t slot, int position) {
    return residual_.at({slot}, position % format_.residual);
  }

  void append(const Sequence& s, int t, int32_t slot) {
    const int position = t - format_.sinks;
    const Region::Token token{s.order, t};
    if (format_.kind != KvKind::kivi) {
      keys_.at(s.kv.pages, t) = values_.at(s.kv.pages, t) = token;
      return;
    }
    if (position < 0) {
      sinks_.at({slot}, t) = token;
      return;
    }
    if (position >= format_.residual)
      values_.at(s.kv.pages, position - format_.residual) = residual_row(slot, position);
    residual_row(slot, position) = token;
    const int quantized = keys_paged(format_, t + 1);
    for (int i = std::max(0, position + 1 - format_.residual); i < quantized; ++i)
      keys_.at(s.kv.pages, i) = residual_row(slot, i);
  }

  // Row `i` of a slab: residual rows, then sinks.
  Region::Token& slab_row(int32_t slot, int i) {
    return i < format_.residual ? residual_.at({slot}, i) : sinks_.at({slot}, i - format_.residual);
  }

  void copy(const KvCopy& c) {
    const int rows = format_.residual + format_.sinks;
    const int begin = rows * c.piece / std::max(1, slab_pages_);
    const int end = rows * (c.piece + 1) / std::max(1, slab_pages_);
    switch (c.kind) {
      case KvCopy::Kind::page_to_page:
        for (int i = 0; i < layout_.page_tokens(); ++i) {
          keys_.at({c.to}, i) = keys_.at({c.from}, i);
          values_.at({c.to}, i) = values_.at({c.from}, i);
        }
        break;
      case KvCopy::Kind::slot_to_page: {
        Piece& piece = pieces_.at(size_t(c.to));
        piece = {c.piece, {}};
        for (int i = begin; i < end; ++i) piece.rows.push_back(slab_row(c.from, i));
        break;
      }
      case KvCopy::Kind::page_to_slot: {
        const Piece& piece = pieces_.at(size_t(c.from));
        expect(piece.index == c.piece, "a piece of a slab is what it was");
        for (int i = begin; i < end; ++i) slab_row(c.to, i) = piece.rows.at(size_t(i - begin));
        break;
      }
      case KvCopy::Kind::slot_to_slot:
        for (int i = 0; i < rows; ++i) slab_row(c.to, i) = slab_row(c.from, i);
        break;
    }
  }

  KvLayout layout_;
  KvFormat format_;
  int slab_pages_;
  Region keys_, values_, residual_, sinks_, staging_;
  std::vector<Piece> pieces_;                        // of slabs, by page
  std::map<uint64_t, std::vector<int32_t>> tokens_;  // by order, as last computed
  bool lose_next_write_ = false;
  bool lost_ = false;
  int64_t copies_ = 0, captures_ = 0, foreign_reads_ = 0;
};

// Prompts whose first tokens are often those of others.
class Prompts {
 public:
  Prompts(Random& random, int prompt_max) {
    for (std::vector<int32_t>& base : bases_)
      for (int i = 0; i < prompt_max; ++i) base.push_back(between(random, 3, 999));
  }
  // Draws a prompt of `length` tokens. Half of all begin as an earlier answer went on.
  std::vector<int32_t> draw(Random& random, int length) const {
    const std::vector<int32_t>& base = bases_[random() % 3];
    std::vector<int32_t> prompt(
        base.begin(), base.begin() + between(random, 0, std::min(length, int(base.size()))));
    if (!answered_.empty() && random() % 2) prompt = answered_[random() % answered_.size()];
    prompt.resize(std::min(prompt.size(), size_t(length)));
    while (int(prompt.size()) < length) prompt.push_back(between(random, 3, 999));
    return prompt;
  }
  // A prompt and its output, which later prompts may repeat.
  void answer(std::vector<int32_t> tokens) {
    std::erase(tokens, -1);
    answered_.push_back(std::move(tokens));
  }

 private:
  std::vector<int32_t> bases_[3];
  std::vector<std::vector<int32_t>> answered_;
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
