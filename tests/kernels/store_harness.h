// SPDX-License-Identifier: Apache-2.0
// A small store with sequences in it: what kv_append and kv_attend tests run steps on. Pages, slots
// and staging pages are handed out in a shuffled order, so that nothing works by being adjacent.
#pragma once

#include <algorithm>
#include <numeric>

#include "kernels/kv_codec.h"
#include "kernels/kv_place.h"
#include "tests/kernels/kivi_reference.h"
#include "tests/kernels/support.h"

namespace kivi::test {

struct TestSequence {
  std::vector<int32_t> pages, staging;
  int slot = 0;
  int past = 0;
  bool in_staging = false;  // its history is in the staging area
  // [layer][token][2 hk d]: k heads, then v heads, as a row of kv.
  std::vector<std::vector<std::vector<f16>>> tokens;
};

// Tokens of one sequence that a step adds.
struct Part {
  TestSequence* sequence;
  int count;
  KvMode mode = KvMode::append;
  int values_from = 0, values_to = 0;  // StepSequence
};

class StoreHarness {
 public:
  // Room for `sequences` sequences of `tokens_max` tokens.
  StoreHarness(Backend& backend, KvLayout layout, int sequences, int tokens_max, uint32_t seed)
      : backend_(backend), random_(seed), layout_(layout) {
    pages_each_ = (tokens_max + layout.page_tokens() - 1) / layout.page_tokens();
    staging_each_ = (tokens_max + KvLayout::kStagingTokens - 1) / KvLayout::kStagingTokens;
    view_.layout = layout;
    view_.page_count = int64_t(sequences) * pages_each_ + 2;
    view_.slot_count = sequences + 1;
    view_.staging_page_count = int64_t(sequences) * staging_each_ + 1;
    view_.pages = region(size_t(view_.page_count * layout.page_bytes()));
    view_.slots = region(size_t(view_.slot_count * layout.slot_bytes()));
    view_.staging = region(size_t(view_.staging_page_count * layout.staging_page_bytes()));
    shuffle(free_pages_, view_.page_count);
    shuffle(free_slots_, view_.slot_count);
    shuffle(free_staging_, view_.staging_page_count);
  }

  const KvView& view() const { return view_; }
  const KvLayout& layout() const { return layout_; }

  // A new sequence whose `tokens` keys and values are random: normal, with a few channels ten times
  // as large (as real keys have), all times `size`.
  TestSequence sequence(int tokens, float size = 1) {
    TestSequence s;
    take(free_pages_, pages_each_, s.pages);
    take(free_staging_, staging_each_, s.staging);
    s.slot = free_slots_.back();
    free_slots_.pop_back();
    std::normal_distribution<float> normal;
    const int columns = 2 * layout_.shape.heads * layout_.shape.head_dim;
    s.tokens.resize(size_t(layout_.shape.layers));
    for (auto& layer : s.tokens)
      for (int t = 0; t < tokens; ++t) {
        std::vector<f16>& row = layer.emplace_back();
        for (int c = 0; c < columns; ++c)
          row.push_back(to_f16_saturated(normal(random_) * size * (c % 29 == 3 ? 10.0f : 1.0f)));
      }
    return s;
  }
  // The same tokens in other pages.
  TestSequence twin(const TestSequence& of) {
    TestSequence s = sequence(0);
    s.tokens = of.tokens;
    return s;
  }

  // Bits of the codes, parameters and f16 rows that the formulas of kv_place.h call stored,
  // for the first `s.past` tokens: equal for equal content, whatever pages hold it.
  std::vector<uint16_t> content(const TestSequence& s) const {
    std::vector<uint16_t> all;
    for (int layer = 0; layer < layout_.shape.layers; ++layer) {
      const std::vector<uint16_t> one = content(s, layer);
      all.insert(all.end(), one.begin(), one.end());
    }
    return all;
  }
  // Those of one layer.
  std::vector<uint16_t> content(const TestSequence& s, int layer) const {
    std::vector<uint16_t> out;
    const KvView view = view_.of_layer(layer);
    const KvLayout& of = view.layout;
    const int d = of.shape.head_dim;
    for (int head = 0; head < of.shape.heads; ++head)
      for (int token = 0; token < s.past; ++token)
        for (const Side side : {Side::key, Side::value}) {
          const KvPlace place = place_of(s, token, side);
          if (place.region != KvRegion::codes) {
            for (int c = 0; c < d; ++c) out.push_back(row_of(s, layer, head, side, token, c).bits);
            continue;
          }
          const std::byte* block = view.page_block(layer, s.pages[size_t(place.page)], head);
          const bool key = side == Side::key;
          for (int c = 0; c < d; ++c) {
            out.push_back(key ? read_key_code(of, block, place.row, c)
                              : read_value_code(of, block, place.row, c));
            if (of.format.kind == KvKind::f8) continue;
            const GroupParameters g = key ? read_key_parameters(of, block, place.row, c)
                                          : read_value_parameters(of, block, place.row, c);
            out.push_back(g.scale.bits);
            out.push_back(g.minimum.bits);
          }
        }
    return out;
  }

  // Where a token that is stored lies.
  KvPlace place_of(const TestSequence& s, int token, Side side) const {
    StepSequence sequence;
    sequence.past = s.past;
    return read_place(layout_, sequence, token, side);
  }
  // Of a token that is stored in 16 bits.
  f16 row_of(const TestSequence& s, int layer, int head, Side side, int token, int channel) const {
    const KvPlace place = place_of(s, token, side);
    StepSequence sequence;
    sequence.slot = s.slot;
    const KvLocator locator{view_, sequence, s.pages.data(), layer, head};
    const int d = layout_.shape.head_dim;
    const f16* row = reinterpret_cast<const f16*>(locator.rows(place, side)) + place.row * d;
    return row[swizzled_channel(place.row, channel, d)];
  }

 private:
  std::byte* region(size_t bytes) {
    buffers_.push_back(backend_.allocate(std::max<size_t>(bytes, 1), "test store").value());
    std::memset(buffers_.back().data(), 0xFF, buffers_.back().bytes());  // NaNs: nobody zeroes it
    return buffers_.back().data();
  }
  void shuffle(std::vector<int32_t>& ids, int64_t n) {
    ids.resize(size_t(n));
    std::iota(ids.begin(), ids.end(), 0);
    std::shuffle(ids.begin(), ids.end(), random_);
  }
  static void take(std::vector<int32_t>& from, int n, std::vector<int32_t>& to) {
    for (int i = 0; i < n; ++i) {
      to.push_back(from.back());
      from.pop_back();
    }
  }
  Backend& backend_;
  std::mt19937 random_;
  KvLayout layout_;
  KvView view_;
  std::vector<Buffer> buffers_;
  int pages_each_ = 0, staging_each_ = 0;
  std::vector<int32_t> free_pages_, free_slots_, free_staging_;
};

// A step over `parts`, with the arrays that its StepView points to.
class TestStep {
 public:
  TestStep(const StoreHarness& store, const std::vector<Part>& parts) : parts_(parts) {
    const KvLayout& layout = store.layout();
    for (const Part& part : parts) {
      const TestSequence& s = *part.sequence;
      StepSequence sequence;
      sequence.row_begin = view_.rows;
      sequence.row_count = part.count;
      sequence.past = s.past;
      sequence.slot = s.slot;
      sequence.mode = part.mode;
      sequence.values_from = part.values_from;
      sequence.values_to = part.values_to;
      if (part.mode != KvMode::stage)
        table(s.pages, layout.pages_for(s.past + part.count), sequence.pages_begin,
              sequence.pages_count);
      if (part.mode != KvMode::append)
        table(
            s.staging,
            KvLayout::staging_pages_for(part.mode == KvMode::stage ? s.past + part.count : s.past),
            sequence.staging_begin, sequence.staging_count);
      view_.rows += part.count;
      sequences_.push_back(sequence);
    }
    view_.sequences = sequences_;
    view_.page_table = page_table_;
    columns_ = 2 * layout.shape.heads * layout.shape.head_dim;
    for (int layer = 0; layer < layout.shape.layers; ++layer) {
      auto& kv = kv_.emplace_back(std::make_unique<Guarded>(DType::f16, view_.rows, columns_));
      for (size_t i = 0; i < parts.size(); ++i)
        for (int r = 0; r < parts[i].count; ++r)
          std::memcpy(
              (*kv)->row<f16>(sequences_[i].row_begin + r),
              parts[i].sequence->tokens[size_t(layer)][size_t(sequences_[i].past + r)].data(),
              size_t(columns_) * 2);
    }
  }
  TestStep(const TestStep&) = delete;
  TestStep& operator=(const TestStep&) = delete;

  StepView& view() { return view_; }
  const Tensor& kv(int layer) const { return **kv_[size_t(layer)]; }

  // Appends the step's tokens in all layers; the sequences grow.
  void append(Backend& backend, const StoreHarness& store) {
    for (int layer = 0; layer < store.layout().shape.layers; ++layer) {
      backend.kv_append(kv(layer), store.view(), view_, layer);
      REQUIRE(kv_[size_t(layer)]->intact());
    }
    for (const Part& part : parts_) {
      part.sequence->past += part.count;
      part.sequence->in_staging = part.mode == KvMode::stage;
    }
  }

 private:
  // No more pages than needed: a kernel that looks further finds those of the next sequence.
  void table(const std::vector<int32_t>& pages, int needed, int32_t& begin, int32_t& count) {
    begin = int32_t(page_table_.size());
    count = needed;
    page_table_.insert(page_table_.end(), pages.begin(), pages.begin() + count);
  }

  std::vector<Part> parts_;
  StepView view_;
  std::vector<StepSequence> sequences_;
  std::vector<int32_t> page_table_;
  std::vector<std::unique_ptr<Guarded>> kv_;
  int columns_ = 0;
};

inline void append(Backend& backend, StoreHarness& store, const std::vector<Part>& parts) {
  TestStep(store, parts).append(backend, store);
}

}  // namespace kivi::test
