// SPDX-License-Identifier: Apache-2.0
// One KV store in two places: in host memory for the CPU backend and on the GPU, with the same
// bytes to begin with: every byte 0xFF, so that whatever is read before it is written is NaN.
#pragma once

#include <algorithm>
#include <cstring>
#include <numeric>
#include <tuple>

#include "tests/cuda/pair.h"

namespace kivi::test {

struct StoredSequence {
  int past = 0;
  int slot = 0;
  std::vector<int32_t> pages;
  std::vector<int32_t> staging;
};

// The new tokens of one step for one sequence.
struct Chunk {
  int sequence = 0;
  int rows = 1;
  KvMode mode = KvMode::append;
  int values_from = 0, values_to = 0;  // StepSequence
};

// Chunks of a step whose sequences share their first `pages` pages.
struct SharedPages {
  std::vector<int> chunks;
  int pages = 0;
};

class TestStore {
 public:
  TestStore(KvLayout layout, int sequences, int tokens_max, std::mt19937& random)
      : layout_(layout) {
    const int pages = layout.pages_for(tokens_max + 1) + 1;
    const int staging = (tokens_max + KvLayout::kStagingTokens - 1) / KvLayout::kStagingTokens;
    std::vector<int32_t> ids(size_t(pages * sequences + 3)), staged(size_t(staging * sequences));
    std::iota(ids.begin(), ids.end(), 0);
    std::iota(staged.begin(), staged.end(), 0);
    std::shuffle(ids.begin(), ids.end(), random);
    std::shuffle(staged.begin(), staged.end(), random);
    for (int i = 0; i < sequences; ++i) {
      StoredSequence s;
      s.slot = sequences - i;  // slot 0 stays unused
      s.pages.assign(ids.begin() + i * pages, ids.begin() + (i + 1) * pages);
      s.staging.assign(staged.begin() + i * staging, staged.begin() + (i + 1) * staging);
      sequences_.push_back(s);
    }
    host_.layout = device_.layout = layout;
    host_.page_count = device_.page_count = int64_t(ids.size());
    host_.slot_count = device_.slot_count = sequences + 1;
    host_.staging_page_count = device_.staging_page_count = int64_t(staged.size());
    const size_t bytes[3] = {size_t(layout.page_bytes()) * ids.size(),
                             size_t(layout.slot_bytes()) * size_t(sequences + 1),
                             size_t(layout.staging_page_bytes()) * staged.size()};
    std::byte** host[3] = {&host_.pages, &host_.slots, &host_.staging};
    std::byte** device[3] = {&device_.pages, &device_.slots, &device_.staging};
    for (int i = 0; i < 3; ++i) {
      bytes_[i].assign(std::max<size_t>(bytes[i], 256), std::byte{0xFF});
      auto buffer = gpu().allocate(bytes_[i].size(), "test store");
      REQUIRE(buffer.ok());
      buffers_[i] = std::move(buffer).value();
      *host[i] = bytes_[i].data();
      *device[i] = buffers_[i].data();
    }
    send();
  }

  // The step of `chunks`; valid until the next call. Sequences stay as they are.
  const StepView& plan(const std::vector<Chunk>& chunks, int window = 0,
                       const std::vector<SharedPages>& shared = {}) {
    table_.clear();
    plan_.clear();
    int rows = 0;
    for (const Chunk& c : chunks) {
      const StoredSequence& s = sequences_[size_t(c.sequence)];
      StepSequence step{.row_begin = rows,
                        .row_count = c.rows,
                        .past = s.past,
                        .slot = s.slot,
                        .mode = c.mode,
                        .values_from = c.values_from,
                        .values_to = c.values_to};
      step.pages_begin = int(table_.size());
      // No more pages than needed: a kernel that looks further finds those of the next sequence.
      step.pages_count = c.mode == KvMode::stage ? 0 : layout_.pages_for(s.past + c.rows);
      table_.insert(table_.end(), s.pages.begin(), s.pages.begin() + step.pages_count);
      step.staging_begin = int(table_.size());
      step.staging_count = c.mode == KvMode::append ? 0 : int(s.staging.size());
      if (step.staging_count > 0) table_.insert(table_.end(), s.staging.begin(), s.staging.end());
      plan_.push_back(step);
      rows += c.rows;
    }
    groups_.clear();
    members_.clear();
    for (const SharedPages& s : shared) {
      groups_.push_back({.pages_begin = plan_[size_t(s.chunks.back())].pages_begin,
                         .pages = s.pages,
                         .members_begin = int(members_.size()),
                         .member_count = int(s.chunks.size())});
      for (const int i : s.chunks) {
        members_.push_back(i);
        plan_[size_t(i)].shared_pages = s.pages;
      }
    }
    constexpr size_t kWords = sizeof(StepSequence) / sizeof(int32_t);
    std::vector<int32_t> packed(plan_.size() * kWords);
    std::memcpy(packed.data(), plan_.data(), packed.size() * 4);
    device_sequences_ = std::make_unique<PairOfInts>(packed);
    device_table_ = std::make_unique<PairOfInts>(table_);
    step_ = StepView{};
    step_.rows = rows;
    step_.sequences = plan_;
    step_.page_table = table_;
    step_.device_sequences =
        make_tensor(device_sequences_->on_gpu().data, DType::i32, int64_t(plan_.size()), kWords);
    step_.device_page_table = device_table_->on_gpu();
    if (!groups_.empty()) {
      std::vector<StepGroup> padded = groups_;
      padded.resize(groups_.size() + 2);
      std::vector<int32_t> words(padded.size() * 4);
      std::memcpy(words.data(), padded.data(), words.size() * 4);
      device_groups_ = std::make_unique<PairOfInts>(words);
      device_members_ = std::make_unique<PairOfInts>(members_);
      step_.groups = groups_;
      step_.group_members = members_;
      step_.device_groups =
          make_tensor(device_groups_->on_gpu().data, DType::i32, int64_t(padded.size()), 4);
      step_.device_group_members = device_members_->on_gpu();
    }
    step_.sliding_window = window;
    return step_;
  }
  // The first pages of `member` are now those of `leader`, with what they hold, and its sinks are
  // copies. Call send() after it.
  void share(int leader, int member, int pages) {
    if (leader == member) return;
    const StoredSequence& from = sequences_[size_t(leader)];
    StoredSequence& to = sequences_[size_t(member)];
    std::copy_n(from.pages.begin(), pages, to.pages.begin());
    const int sinks = layout_.sinks_offset(Side::key);
    for (int layer = 0; layer < layout_.shape.layers; ++layer)
      for (int head = 0; head < layout_.shape.heads; ++head)
        std::memcpy(host_.slab(layer, to.slot, head) + sinks,
                    host_.slab(layer, from.slot, head) + sinks,
                    size_t(layout_.slab_bytes() - sinks));
  }
  // The planned tokens are now cached.
  void commit(const std::vector<Chunk>& chunks) {
    for (const Chunk& c : chunks) sequences_[size_t(c.sequence)].past += c.rows;
  }

  void send() {
    for (int i = 0; i < 3; ++i)
      gpu().upload(buffers_[i].data(), bytes_[i].data(), bytes_[i].size());
  }
  // Whether the GPU's pages, slots and staging hold the same bytes as the host's.
  bool same_bytes(int region) const {
    std::vector<std::byte> got(bytes_[region].size());
    gpu().download(got.data(), buffers_[region].data(), got.size());
    return got == bytes_[region];
  }

  const KvView& host() const { return host_; }
  const KvView& device() const { return device_; }
  const KvLayout& layout() const { return layout_; }
  const StoredSequence& sequence(int i) const { return sequences_[size_t(i)]; }
  int kv_columns() const { return 2 * layout_.shape.heads * layout_.shape.head_dim; }

 private:
  KvLayout layout_;
  KvView host_, device_;
  std::vector<StoredSequence> sequences_;
  std::vector<std::byte> bytes_[3];
  Buffer buffers_[3];
  std::vector<int32_t> table_;
  std::vector<StepSequence> plan_;
  std::vector<StepGroup> groups_;
  std::vector<int32_t> members_;
  std::unique_ptr<PairOfInts> device_sequences_, device_table_, device_groups_, device_members_;
  StepView step_;
};

inline std::vector<KvFormat> kivi_formats(int head_dim) {
  std::vector<KvFormat> formats;
  for (const auto& [k, v] : {std::pair{2, 2}, {4, 4}, {4, 2}, {2, 4}})
    for (const auto& [g, r] :
         {std::pair{32, 32}, {32, 128}, {32, 96}, {64, 64}, {64, 128}, {128, 128}})
      if (head_dim % g == 0) formats.push_back({KvKind::kivi, k, v, g, r});
  return formats;
}
// Formats with sinks, parameters of 8 bits and a key bias: all of them at 2 bits, some at others.
inline std::vector<KvFormat> extended_formats(int head_dim) {
  std::vector<KvFormat> formats;
  for (const auto& [k, v] : {std::pair{2, 2}, {4, 4}, {4, 2}, {2, 4}})
    for (const auto& [g, r, s, parameters, bias] : {std::tuple{32, 32, 32, 8, true},
                                                    {64, 64, 64, 8, true},
                                                    {128, 128, 128, 8, true},
                                                    {32, 128, 96, 8, false},
                                                    {32, 64, 32, 16, true},
                                                    {64, 128, 128, 16, false},
                                                    {32, 32, 0, 8, true}}) {
      if (head_dim % g != 0 || (k + v != 4 && s != g)) continue;
      formats.push_back({KvKind::kivi, k, v, g, r, s, parameters, bias});
    }
  return formats;
}
inline KvFormat f16_format() { return {}; }
inline KvFormat f8_format() { return {KvKind::f8, 8, 8, 0, 0}; }
inline std::vector<KvFormat> all_formats(int head_dim) {
  std::vector<KvFormat> formats = kivi_formats(head_dim);
  for (const KvFormat& f : extended_formats(head_dim)) formats.push_back(f);
  formats.push_back(f16_format());
  formats.push_back(f8_format());
  return formats;
}

}  // namespace kivi::test
