// The scheduler simulation: a seed decides pool sizes, formats, modes, arrivals, lengths and
// cancels; after every step the sums must hold. The store is simulated too, as it treats keys:
// pages, residual rows and staging pages remember which token of which sequence was written where,
// and every planned row must find its whole history there.
#include <algorithm>
#include <catch2/catch.hpp>
#include <map>
#include <random>
#include <set>
#include <stdexcept>

#include "engine/scheduler.h"
#include "kernels/kv_codec.h"

using namespace kivi;

namespace {

void expect(bool condition, const char* what) {
  if (!condition) throw std::runtime_error(what);
}

const KvFormat kFormats[] = {
    {KvKind::f16, 16, 16, 0, 0},  {KvKind::f8, 8, 8, 0, 0},      {KvKind::kivi, 2, 2, 32, 32},
    {KvKind::kivi, 4, 4, 64, 64}, {KvKind::kivi, 4, 2, 32, 128}, {KvKind::kivi, 2, 2, 128, 128},
};

constexpr int kHeads = 2;

using Random = std::mt19937;
int between(Random& random, int low, int high) {
  return std::uniform_int_distribution(low, high)(random);
}

// What stands where in one region: (order of the sequence, position), by page and offset.
using Token = std::pair<uint64_t, int>;
class Region {
 public:
  Region(int pages, int page_tokens)
      : page_tokens_(page_tokens), tokens_(size_t(pages) * page_tokens, Token{~0ull, -1}) {}
  Token& at(const std::vector<int32_t>& pages, int position) {
    return tokens_[size_t(pages.at(size_t(position / page_tokens_))) * page_tokens_ +
                   position % page_tokens_];
  }

 private:
  int page_tokens_;
  std::vector<Token> tokens_;
};

// The world is made from one seed.
struct World {
  explicit World(uint32_t seed) : random(seed) {
    format = kFormats[between(random, 0, 5)];
    layout = {format, {2, kHeads, 128}};
    config.kivi_prefill = random() % 2 ? PrefillMode::exact : PrefillMode::stream;
    config.scheduling_policy = random() % 3 ? SchedulingPolicy::fcfs : SchedulingPolicy::priority;
    config.max_num_seqs = between(random, 1, 9);
    config.prefill_chunk_tokens = between(random, 1, 200);
    config.max_num_batched_tokens =
        config.max_num_seqs + config.prefill_chunk_tokens + between(random, 0, 300);
    config.prefill_staging_tokens = random() % 4 ? between(random, 0, 1000) : 0;
    prompt_max = random() % 2 ? between(random, 1, 500) : between(random, 1, 50);
    output_max = random() % 2 ? between(random, 0, 50) : between(random, 50, 500);
    const int page = layout.page_tokens();
    const int pages_min = (prompt_max + output_max + page - 1) / page;
    capacity = {pages_min + between(random, 0, 8), between(random, 1, config.max_num_seqs),
                config.prefill_staging_tokens / 64 + between(random, 0, 1)};
    requests = between(random, 1, 40);
    arrival_percent = between(random, 2, 100);
    cancel_per_mille = random() % 2 ? between(random, 0, 30) : 0;
    failure_per_mille = random() % 3 ? 0 : between(random, 0, 20);
  }
  Random random;
  EngineConfig config;
  KvFormat format;
  KvLayout layout;
  KvCapacity capacity;
  int prompt_max, output_max, requests, arrival_percent;
  int cancel_per_mille, failure_per_mille;  // of a sequence a step, of a step
};

class Simulation {
 public:
  explicit Simulation(uint32_t seed)
      : w_(seed),
        cache_(w_.layout, w_.capacity),
        scheduler_(w_.config, cache_),
        pages_(w_.capacity.pages, w_.layout.page_tokens()),
        residual_(w_.capacity.slots, std::max(1, w_.format.residual)),
        staging_(w_.capacity.staging_pages, KvLayout::kStagingTokens) {}

  void run() {
    for (int step = 0; arrived_ < w_.requests || scheduler_.running() + scheduler_.waiting() > 0;
         ++step) {
      expect(step < 200'000, "it ends");
      arrive();
      cancel_some();
      const std::map<const Sequence*, size_t> before = running_pages();
      const uint64_t preemptions_before = preemptions();
      const BatchPlan plan = scheduler_.plan();
      check_plan(plan);
      check_moves(before, plan, preemptions() > preemptions_before);
      check_sums();
      if (between(w_.random, 1, 1000) <=
          w_.failure_per_mille) {  // a step that fails takes its sequences away, and no others
        for (const PlannedSequence& part : plan.sequences) end(part.sequence);
      } else {
        compute(plan);
        scheduler_.commit(plan);
        sample(plan);
      }
      check_sums();
    }
    for (int order = 0; order < w_.requests; ++order)
      expect(finals_[uint64_t(order)] == 1, "every request ends exactly once");
    expect(cache_.pages_free() == w_.capacity.pages, "no page is held at the end");
    expect(cache_.slots_free() == w_.capacity.slots, "no slot is held at the end");
    expect(cache_.staging_pages_free() == w_.capacity.staging_pages, "no staging page is held");
    expect(cache_.bytes_held() == KvBytes{}, "no byte is held at the end");
    expect(scheduler_.waiting_tokens() == 0, "no token waits at the end");
  }

  uint64_t preemptions() const { return scheduler_.preemptions(); }
  int staged_chunks() const { return staged_chunks_; }

 private:
  void arrive() {
    while (arrived_ < w_.requests && between(w_.random, 1, 100) <= w_.arrival_percent) {
      auto s = std::make_unique<Sequence>();
      s->order = uint64_t(arrived_++);
      s->tokens.assign(size_t(between(w_.random, 1, w_.prompt_max)), 1);
      s->prompt_tokens = s->prefill_tokens = int(s->tokens.size());
      s->request.sampling.max_tokens = between(w_.random, 0, w_.output_max);
      s->request.priority = between(w_.random, -1, 1);
      expect(cache_.fits_ever(s->prompt_tokens + s->request.sampling.max_tokens), "it fits");
      scheduler_.add(std::move(s));
    }
  }

  void cancel_some() {
    for (Sequence* s : scheduler_.sequences())
      if (between(w_.random, 1, 1000) <= w_.cancel_per_mille) end(s);
  }

  void end(Sequence* s) {
    ++finals_[s->order];
    const std::unique_ptr<Sequence> removed = scheduler_.remove(s);
    expect(removed->kv.pages.empty() && removed->kv.staging_pages.empty() && removed->kv.slot < 0,
           "a removed sequence holds nothing");
  }

  void check_plan(const BatchPlan& plan) {
    const std::vector<Sequence*> all = scheduler_.sequences();
    expect(plan.empty() == all.empty(), "a plan is empty only without sequences");
    expect(plan.rows <= w_.config.max_num_batched_tokens, "rows are bounded");
    expect(int(plan.sequences.size()) <= w_.config.max_num_seqs, "sequences are bounded");
    int rows = 0;
    bool decodes_over = false;
    std::set<const Sequence*> planned;
    for (const PlannedSequence& part : plan.sequences) {
      const Sequence& s = *part.sequence;
      rows += part.count;
      expect(planned.insert(&s).second, "a sequence is planned once");
      expect(s.state == SequenceState::running, "what is planned runs");
      expect(part.past == s.kv.tokens, "a part follows what is cached");
      expect(!(decodes_over && !s.prefilling()), "decodes come first");
      decodes_over = s.prefilling();
      check_part(part, s);
    }
    expect(rows == plan.rows, "rows are the sum of the counts");
    if (all.empty()) return;
    expect(planned.count(all.front()) == 1, "the oldest running sequence moves");
    if (w_.config.scheduling_policy == SchedulingPolicy::fcfs)
      for (const Sequence* s : all)
        expect(all.front()->order <= s->order, "the oldest of all runs, under fcfs");
  }

  // Running sequences, and how many pages they hold.
  std::map<const Sequence*, size_t> running_pages() const {
    std::map<const Sequence*, size_t> pages;
    for (const Sequence* s : scheduler_.sequences())
      if (s->state == SequenceState::running) pages[s] = s->kv.pages.size();
    return pages;
  }

  // Who was preempted had something to give; nobody comes in while pages are short.
  void check_moves(const std::map<const Sequence*, size_t>& before, const BatchPlan& plan,
                   bool preempted) {
    for (const auto& [s, pages] : before)
      expect(s->state == SequenceState::running || pages > 0, "a victim holds pages");
    size_t ran_before = 0;
    for (const PlannedSequence& part : plan.sequences) ran_before += before.count(part.sequence);
    bool stalled = false;
    for (const auto& [s, unused] : before) {
      const auto is = [s = s](const PlannedSequence& part) { return part.sequence == s; };
      stalled = stalled || std::ranges::none_of(plan.sequences, is);
    }
    if (preempted || stalled)
      expect(ran_before == plan.sequences.size(), "nobody is admitted while pages are short");
  }

  void check_part(const PlannedSequence& part, const Sequence& s) {
    const int chunk = w_.config.prefill_chunk_tokens;
    const int end = part.past + part.count;
    if (!s.prefilling()) {
      expect(part.count == 1 && part.samples && part.mode == KvMode::append,
             "a decode is one token");
      expect(end == int(s.tokens.size()), "a decode computes the newest token");
      return;
    }
    expect(part.past % chunk == 0, "chunks start at multiples of their length");
    expect(part.count == chunk || (part.count < chunk && end == s.prefill_tokens),
           "chunks have the fixed length, but for the last");
    expect(part.samples == (end == s.prefill_tokens && s.request.sampling.max_tokens > 0),
           "the last chunk samples");
    const bool exact = w_.config.kivi_prefill == PrefillMode::exact;
    const bool one_chunk = s.prefill_tokens <= chunk;
    if (!exact || one_chunk || w_.format.kind != KvKind::kivi ||
        s.prefill_tokens > w_.config.prefill_staging_tokens) {
      expect(part.mode == KvMode::append, "mode store");
    } else if (part.mode != KvMode::append) {  // store: more staging pages than there are
      expect((part.mode == KvMode::seal) == (end == s.prefill_tokens), "the last chunk commits");
      ++staged_chunks_;
    }
  }

  // Each page is free or held exactly once; a sequence is in one place; bytes are the sum.
  void check_sums() {
    std::set<int32_t> pages, slots, staging;
    size_t pages_held = 0, slots_held = 0, staging_held = 0;
    KvBytes bytes;
    int running = 0, waiting = 0;
    int64_t waiting_tokens = 0;
    std::set<uint64_t> orders;
    for (const Sequence* s : scheduler_.sequences()) {
      expect(orders.insert(s->order).second, "no sequence is in two places");
      const SequenceKv& kv = s->kv;
      pages.insert(kv.pages.begin(), kv.pages.end());
      staging.insert(kv.staging_pages.begin(), kv.staging_pages.end());
      pages_held += kv.pages.size();
      staging_held += kv.staging_pages.size();
      if (kv.slot >= 0) slots.insert(kv.slot);
      slots_held += kv.slot >= 0;
      if (s->state == SequenceState::running) {
        ++running;
        const int64_t blocks = int64_t(kv.pages.size()) * w_.layout.shape.layers * kHeads;
        bytes.codes += blocks * (w_.layout.key_codes_bytes() + w_.layout.value_codes_bytes());
        bytes.parameters +=
            blocks * (w_.layout.key_parameters_bytes() + w_.layout.value_parameters_bytes());
        bytes.residual += w_.layout.residual_slot_bytes();
        expect(kv.slot >= 0, "who runs has a slot");
      } else {
        ++waiting;
        waiting_tokens += int64_t(s->tokens.size());
        expect(kv.pages.empty() && kv.staging_pages.empty() && kv.slot < 0 && kv.tokens == 0,
               "who waits holds nothing");
      }
    }
    expect(running == scheduler_.running() && waiting == scheduler_.waiting(), "counts");
    expect(waiting_tokens == scheduler_.waiting_tokens(), "waiting tokens are the sum");
    expect(pages.size() == pages_held, "a page has one holder");
    expect(slots.size() == slots_held, "a slot has one holder");
    expect(staging.size() == staging_held, "a staging page has one holder");
    expect(int(pages_held) + cache_.pages_free() == w_.capacity.pages, "pages add up");
    expect(int(slots_held) + cache_.slots_free() == w_.capacity.slots, "slots add up");
    expect(int(staging_held) + cache_.staging_pages_free() == w_.capacity.staging_pages,
           "staging pages add up");
    expect(bytes == cache_.bytes_held(), "bytes held are the sum over sequences");
  }

  // Reads every part's history and writes its tokens, as the kernels would.
  void compute(const BatchPlan& plan) {
    for (const PlannedSequence& part : plan.sequences) {
      const Sequence& s = *part.sequence;
      const SequenceKv& kv = s.kv;
      const bool from_staging = part.mode != KvMode::append;
      for (int t = 0; t < part.past; ++t) {
        const Token& token = from_staging ? staging_.at(kv.staging_pages, t)
                             : t < key_tokens_quantized(w_.format, part.past)
                                 ? pages_.at(kv.pages, t)
                                 : residual_row(kv, t);
        expect(token == Token{s.order, t}, "the history is where it was written");
      }
      const int begin = part.mode == KvMode::seal ? 0 : part.past;
      for (int t = begin; t < part.past + part.count; ++t) {
        if (part.mode == KvMode::stage)
          staging_.at(kv.staging_pages, t) = {s.order, t};
        else
          append(s, t);
      }
    }
  }

  Token& residual_row(const SequenceKv& kv, int t) {
    return residual_.at({kv.slot}, t % w_.format.residual);
  }
  void append(const Sequence& s, int t) {
    if (w_.format.kind != KvKind::kivi) {
      pages_.at(s.kv.pages, t) = {s.order, t};
      return;
    }
    residual_row(s.kv, t) = {s.order, t};
    const int quantized = key_tokens_quantized(w_.format, t + 1);
    for (int i = std::max(0, t + 1 - w_.format.residual); i < quantized; ++i)
      pages_.at(s.kv.pages, i) = residual_row(s.kv, i);
  }

  void sample(const BatchPlan& plan) {
    for (const PlannedSequence& part : plan.sequences) {
      Sequence& s = *part.sequence;
      if (s.prefilling()) continue;
      if (part.samples) s.tokens.push_back(1);
      if (s.output_tokens() >= s.request.sampling.max_tokens) end(&s);
    }
  }

  World w_;
  KvCache cache_;
  Scheduler scheduler_;
  Region pages_, residual_, staging_;
  std::map<uint64_t, int> finals_;
  int arrived_ = 0;
  int staged_chunks_ = 0;
};

}  // namespace

TEST_CASE("the sums hold after every step, for whatever a seed decides") {
  uint64_t preemptions = 0;
  int staged_chunks = 0;
  for (uint32_t seed = 1; seed <= 600; ++seed) {
    INFO("seed " << seed);
    Simulation simulation(seed);
    REQUIRE_NOTHROW(simulation.run());
    preemptions += simulation.preemptions();
    staged_chunks += simulation.staged_chunks();
  }
  // The seeds reach what they are meant to reach.
  CHECK(preemptions > 100);
  CHECK(staged_chunks > 100);
}
