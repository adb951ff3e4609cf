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
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <unordered_map>
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
  SimulatedStore(const KvLayout& layout, const KvCapacity& capacity, int host_pages = 0)
      : layout_(layout),
        format_(layout.format),
        slab_pages_(PrefixBlocks::of(layout).slab_pages),
        keys_(capacity.pages, layout.page_tokens()),
        values_(capacity.pages, layout.page_tokens()),
        residual_(capacity.slots, std::max(1, layout.format.residual)),
        sinks_(capacity.slots, std::max(1, layout.format.sinks)),
        staging_(capacity.staging_pages, KvLayout::kStagingTokens),
        pieces_(size_t(capacity.pages)),
        host_(size_t(host_pages)) {}

  // Makes the step's copies, reads every part's history and writes its tokens, as the kernels
  // would. Throws where a part does not find its history.
  void compute(const BatchPlan& plan) {
    if (!ignore_waits_)
      while (transfers_done_ < plan.after_transfers) run_transfers(1);
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
      complete(*part.sequence, capture.tokens, capture.slot, capture.values_to);
    }
    for (const PlannedSequence& part : plan.sequences) write(part);
    for (const KvCopy& c : plan.copies_after) copy(c);
    copies_ += int64_t(plan.copies_before.size() + plan.copies_after.size());
    captures_ += int64_t(plan.captures.size());
  }

  // Transfers run as late as they may: when a test says so, or when a step awaits them.
  void transfer(std::span<const KvTransfer> batch) {
    batches_.emplace_back(batch.begin(), batch.end());
  }
  void run_transfers(int batches) {
    for (; batches > 0 && !batches_.empty(); --batches, ++transfers_done_) {
      for (const KvTransfer& t : batches_.front()) move(t);
      transfer_seconds_ += seconds_a_page_ * double(batches_.front().size());
      batches_.pop_front();
    }
  }
  int transfers_under_way() const { return int(batches_.size()); }
  uint64_t transfers_done() const { return transfers_done_; }
  // How long the copy of a page takes from now on; 0: not known.
  void set_seconds_a_page(double seconds) { seconds_a_page_ = seconds; }
  double transfer_seconds() const { return transfer_seconds_; }
  int64_t pages_brought_back() const { return brought_back_; }

  // What a page holds.
  struct Page {
    std::vector<Region::Token> keys, values;
    struct {
      int index = -1;
      std::vector<Region::Token> rows;  // of residual and sinks
    } piece;
  };
  Page& host_page(int32_t page) { return host_.at(size_t(page)); }

  // Faults for canaries: a page that comes back is not written; steps do not wait for transfers.
  void lose_next_fetch() { lose_next_fetch_ = true; }
  bool lost_a_fetch() const { return lost_fetch_; }
  void ignore_waits() { ignore_waits_ = true; }
  // A fault for canaries: values that are to be written early, for a checkpoint, are not written.
  void ignore_completions() { ignore_completions_ = true; }
  bool lost_a_completion() const { return lost_completion_; }

  // A fault for canaries: the next output token that is computed is not written.
  void lose_next_write() { lose_next_write_ = true; }
  bool lost_a_write() const { return lost_; }
  int64_t copies() const { return copies_; }
  int64_t captures() const { return captures_; }
  int64_t foreign_reads() const { return foreign_reads_; }

 private:
  using Piece = decltype(Page::piece);

  void move(const KvTransfer& t) {
    const int count = layout_.page_tokens();
    Page& host = host_page(t.host_page);
    if (t.to == KvTransfer::To::host) {
      host = {};
      for (int i = 0; i < count; ++i) {
        host.keys.push_back(keys_.at({t.page}, i));
        host.values.push_back(values_.at({t.page}, i));
      }
      host.piece = pieces_.at(size_t(t.page));
      return;
    }
    if (std::exchange(lose_next_fetch_, false)) {
      lost_fetch_ = true;
      return;
    }
    expect(int(host.keys.size()) == count, "a page that comes back has been written");
    ++brought_back_;
    for (int i = 0; i < count; ++i) {
      keys_.at({t.page}, i) = host.keys[size_t(i)];
      values_.at({t.page}, i) = host.values[size_t(i)];
    }
    pieces_.at(size_t(t.page)) = host.piece;
  }

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
      const size_t filled = size_t(std::max(values_paged(format_, part.past), kv.values_stored) /
                                   layout_.page_tokens());
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
    if (part.mode != KvMode::stage) complete(s, part.past + part.count, s.kv.slot, part.values_to);
  }

  // Writes the values before the paged position `to` that the residual has after `tokens` tokens.
  void complete(const Sequence& s, int tokens, int32_t slot, int to) {
    if (format_.kind != KvKind::kivi) return;
    for (int i = std::max(values_paged(format_, tokens), s.kv.values_stored); i < to; ++i) {
      if (ignore_completions_)
        lost_completion_ = true;
      else
        values_.at(s.kv.pages, i) = residual_row(slot, i);
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
    if (position - format_.residual >= s.kv.values_stored)
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
  std::vector<Page> host_;
  std::deque<std::vector<KvTransfer>> batches_;  // under way
  uint64_t transfers_done_ = 0;
  double seconds_a_page_ = 0, transfer_seconds_ = 0;
  int64_t brought_back_ = 0;
  bool lose_next_fetch_ = false, lost_fetch_ = false, ignore_waits_ = false;
  bool lose_next_write_ = false, ignore_completions_ = false, lost_completion_ = false;
  bool lost_ = false;
  int64_t copies_ = 0, captures_ = 0, foreign_reads_ = 0;
};

// A disk for KvTier that forgets, fails and is slow, as its randomness says. A job reads or writes
// its host pages when it ends, as late as it may.
class SimulatedDisk : public PieceStore {
 public:
  SimulatedDisk(std::shared_ptr<SimulatedStore> store, uint32_t seed, int failures_percent)
      : store_(std::move(store)), random_(seed), failures_percent_(failures_percent) {}

  bool writes() const override { return true; }
  bool contains(const PieceKey& key) const override { return pieces_.contains(key); }
  uint64_t write(const PieceKey& key, const std::vector<int32_t>& pages) override {
    jobs_.push_back({++jobs_begun_, key, pages, true});
    return jobs_begun_;
  }
  uint64_t read(const PieceKey& key, const std::vector<int32_t>& pages) override {
    expect(contains(key), "what is read is there");
    jobs_.push_back({++jobs_begun_, key, pages, false});
    return jobs_begun_;
  }
  void poll(std::vector<Done>& done) override {
    while (!jobs_.empty() && random_() % 2) {
      const auto job = jobs_.begin() + std::ptrdiff_t(random_() % jobs_.size());
      done.push_back({job->number, run(*job)});
      jobs_.erase(job);
    }
  }
  void erase(const PieceKey& key) override { pieces_.erase(key); }
  PieceStoreStats stats() const override { return {}; }
  double pages_read_per_second() const override { return pages_a_second_; }
  void set_pages_a_second(double pages) { pages_a_second_ = pages; }
  int64_t reads() const { return reads_; }
  int64_t failures() const { return failures_; }

 private:
  struct Job {
    uint64_t number;
    PieceKey key;
    std::vector<int32_t> pages;
    bool writes;
  };
  bool run(const Job& job) {
    if (between(random_, 1, 100) <= failures_percent_) {
      ++failures_;
      pieces_.erase(job.key);
      return false;
    }
    if (!job.writes && !contains(job.key)) return false;
    std::vector<SimulatedStore::Page>& piece = pieces_[job.key];
    if (job.writes) {
      piece.clear();
      for (const int32_t page : job.pages) piece.push_back(store_->host_page(page));
      return true;
    }
    ++reads_;
    for (size_t i = 0; i < piece.size(); ++i) store_->host_page(job.pages.at(i)) = piece[i];
    return true;
  }

  const std::shared_ptr<SimulatedStore> store_;
  Random random_;
  const int failures_percent_;
  std::unordered_map<PieceKey, std::vector<SimulatedStore::Page>, PieceKeyHash> pieces_;
  std::vector<Job> jobs_;
  uint64_t jobs_begun_ = 0;
  int64_t reads_ = 0, failures_ = 0;
  double pages_a_second_ = 0;
};

// What a seed decides of the tiers beyond the store, apart from the rest of its world.
struct TierWorld {
  TierWorld(uint32_t seed, bool on) : random(seed * 2654435761u + 1) {
    if (!on) return;
    host_pages = random() % 2 ? between(random, 20, 60) : 2000;
    moves_percent = random() % 2 ? 100 : between(random, 5, 50);
    has_disk = random() % 3 != 0;
    disk_failures_percent = random() % 2 ? between(random, 1, 30) : 0;
    measures = random() % 4 != 0;
    fetch = random() % 3 ? KvFetch::automatic : KvFetch(random() % 3);
  }
  KvTierSetup setup(std::shared_ptr<SimulatedStore> store) {
    KvTierSetup setup;
    setup.host_pages = host_pages;
    setup.secret = "secret";
    if (!has_disk || host_pages == 0) return setup;
    auto simulated =
        std::make_unique<SimulatedDisk>(std::move(store), random(), disk_failures_percent);
    disk = simulated.get();
    setup.disk = std::move(simulated);
    return setup;
  }
  // Runs some of the transfers under way. What a page takes changes now and then, so that sometimes
  // fetching is estimated to be faster, and sometimes computing.
  void move(SimulatedStore& store) {
    if (measures && random() % 20 == 0) {
      store.set_seconds_a_page(1e-4 * between(random, 1, 100));
      if (disk != nullptr)
        disk->set_pages_a_second(random() % 3 ? between(random, 100, 10'000) : 0);
    }
    if (between(random, 1, 100) > moves_percent) return;
    store.run_transfers(between(random, 0, store.transfers_under_way()));
  }

  Random random;
  int host_pages = 0;
  int moves_percent = 100;  // of the steps before which transfers run
  bool has_disk = false;
  int disk_failures_percent = 0;
  bool measures = false;  // how long transfers take is known
  KvFetch fetch = KvFetch::automatic;
  SimulatedDisk* disk = nullptr;  // the tier owns it
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
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  // A world takes 10 to 20 times as long there.
  for (uint32_t seed = 1; seed <= seeds / 3; ++seed) world(seed);
  return false;
#else
  for (uint32_t seed = 1; seed <= seeds; ++seed) world(seed);
  return true;
#endif
}

}  // namespace kivi::testing
