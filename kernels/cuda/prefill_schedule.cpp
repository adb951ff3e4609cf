// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/prefill_schedule.h"

#include <algorithm>

namespace kivi::cuda {
namespace {

// Less than this at a time, and the launches cost more than unpacking the codes where they lie.
constexpr int64_t kTilesMin = 16;
// Rows of a tile of queries, with all heads of a KV head's group: what a block of the attention
// takes at a time.
constexpr int kQueryRows = 128;
// Ranges of histories are as many as bring the step's blocks to this number, about that of the
// multiprocessors of a large GPU. It does not depend on the device, so that results do not.
constexpr int64_t kBlocks = 128;
constexpr int64_t kRangesMax = 8;
// A range is at least so long: 1,024 tokens take a block as long as the launches that it costs.
constexpr int kRangeTilesMin = 16;

int tiles_of(int places) { return (places + kHistoryTile - 1) / kHistoryTile; }

class Scheduler {
 public:
  Scheduler(const KvView& store, const StepView& step, int heads_q)
      : step_(step), format_(store.layout.format), heads_(store.layout.shape.heads) {
    const KvShape& shape = store.layout.shape;
    const int64_t block = int64_t(store.layout.staging_block_bytes()) * shape.heads;
    // f16 pages are read where they lie.
    tiles_ = store.layout.format.kind == KvKind::f16 ? 0 : store.scratch_bytes / block;
    quantized_ = store.layout.format.kind != KvKind::f16;
    const bool splits = std::ranges::any_of(step.sequences, [&](const StepSequence& s) {
      return uses_scratch(s) && end_tile(s) - first_tile(s) > tiles_;
    });
    const int64_t states = int64_t(step.rows) * heads_q * (shape.head_dim + 2) * 4;
    ranges_ = std::min(ranges_of_step(heads_q), store.scratch_bytes / 4 / states);
    if (ranges_ < 2) ranges_ = 1;
    if (!splits && ranges_ == 1) return;
    tiles_ = std::max<int64_t>(0, store.scratch_bytes - ranges_ * states) / block;
    schedule_.states_offset = tiles_ * block;
  }

  PrefillSchedule run() {
    for (size_t i = 0; i < step_.sequences.size(); ++i) {
      const StepSequence& s = step_.sequences[i];
      if (s.row_count > 0 && !s.is_decode()) add(int(i), s);
    }
    flush();
    return std::move(schedule_);
  }

 private:
  bool uses_scratch(const StepSequence& s) const {
    return quantized_ && s.mode == KvMode::append && s.past > 0 && s.row_count > 1;
  }
  // The first row's window begins here.
  int first_tile(const StepSequence& s) const {
    const int window = step_.sliding_window;
    const int seen = window > 0 ? std::max(0, s.past + 1 - window) : 0;
    return (seen + place_shift(format_, s.mode)) / kHistoryTile;
  }
  int end_tile(const StepSequence& s) const {
    return tiles_of(s.past + place_shift(format_, s.mode));
  }

  // The tile that the sequence's own rows, or the last ones of its history, begin in.
  int whole_tiles(const StepSequence& s) const {
    return (s.past + place_shift(format_, s.mode)) / kHistoryTile;
  }
  // Into how many ranges the history may be cut, for its length.
  int64_t ranges_of(const StepSequence& s) const {
    return uses_scratch(s) ? (whole_tiles(s) - first_tile(s)) / kRangeTilesMin : 1;
  }
  // Into how many ranges histories should be cut.
  int64_t ranges_of_step(int heads_q) const {
    const int heads = heads_;
    int64_t blocks = 0, longest = 1;
    for (const StepSequence& s : step_.sequences) {
      if (s.is_decode()) continue;
      blocks += (int64_t(s.row_count) * (heads_q / heads) + kQueryRows - 1) / kQueryRows * heads;
      longest = std::max(longest, ranges_of(s));
    }
    return blocks == 0 ? 1 : std::min({kBlocks / blocks, kRangesMax, longest});
  }

  void add(int index, const StepSequence& s) {
    PrefillWork work;
    work.sequence = index;
    work.rows = s.row_count;
    work.block = -1;
    const int first = first_tile(s), end = end_tile(s), tiles = end - first;
    if (!uses_scratch(s) || tiles <= 0 || tiles_ < std::min<int64_t>(tiles, kTilesMin)) {
      next_.reads_codes = next_.reads_codes || (uses_scratch(s) && tiles > 0);
      return push(work);
    }
    if (used_ > 0 && used_ + tiles > tiles_) flush();
    if (const int64_t ranges = std::min(ranges_, ranges_of(s)); ranges > 1)
      return add_ranges(work, int(ranges), first, whole_tiles(s), end);
    for (int at = first; at < end;) {
      const int count = int(std::min<int64_t>(end - at, tiles_));
      work.tile_begin = at;
      work.tile_end = at + count;
      work.block = int32_t(used_);
      work.is_first = at == first;
      work.is_last = at + count == end;
      used_ += count;
      next_.tiles_max = std::max(next_.tiles_max, count);
      push(work);
      at += count;
      if (at < end) flush();
    }
  }
  // The tiles [first, whole) in ranges, then what is left of the history together with the
  // sequence's own rows.
  void add_ranges(PrefillWork work, int ranges, int first, int whole, int end) {
    for (int at = first; at < whole;) {
      if (used_ == tiles_ || next_.work.size() + size_t(ranges) > size_t(kPrefillWorkMax)) flush();
      const int count = int(std::min<int64_t>(whole - at, tiles_ - used_));
      // Even, because the attention takes two tiles at a time.
      const int each = ((count + ranges - 1) / ranges + 1) / 2 * 2;
      work.regions = uint8_t((count + each - 1) / each);
      work.is_last = 0;
      work.region = 0;
      for (int begin = 0; begin < count; begin += each, ++work.region) {
        work.tile_begin = at + begin;
        work.tile_end = at + std::min(begin + each, count);
        work.block = int32_t(used_) + begin;
        work.is_first = work.region > 0 || at == first;
        next_.tiles_max = std::max(next_.tiles_max, work.tile_end - work.tile_begin);
        next_.work.push_back(work);
      }
      next_.rows_max = std::max(next_.rows_max, work.rows);
      next_.merges = next_.merges || work.regions > 1;
      used_ += count;
      at += count;
      flush();
    }
    work.tile_begin = whole;
    work.tile_end = end;
    work.block = int32_t(used_);
    work.is_first = 0;
    work.is_last = 1;
    work.region = 0;
    work.regions = 1;
    used_ += end - whole;
    next_.tiles_max = std::max(next_.tiles_max, end - whole);
    push(work);
  }
  void push(const PrefillWork& work) {
    next_.work.push_back(work);
    next_.rows_max = std::max(next_.rows_max, work.rows);
    if (next_.work.size() == size_t(kPrefillWorkMax)) flush();
  }
  void flush() {
    if (!next_.work.empty()) schedule_.launches.push_back(std::move(next_));
    next_ = {};
    used_ = 0;
  }

  const StepView& step_;
  const KvFormat format_;
  const int heads_;     // KV heads
  int64_t tiles_ = 0;   // that scratch holds
  int64_t ranges_ = 1;  // into which a long history is cut
  int64_t used_ = 0;    // by next_
  bool quantized_ = false;
  PrefillLaunch next_;
  PrefillSchedule schedule_;
};

}  // namespace

PrefillSchedule schedule_prefill(const KvView& store, const StepView& step, int heads_q) {
  return Scheduler(store, step, heads_q).run();
}

int64_t prefill_scratch_bytes(const KvLayout& layout, int64_t tokens) {
  if (layout.format.kind == KvKind::f16) return 0;
  const int64_t places = tokens + place_shift(layout.format, KvMode::append);
  const int64_t tiles = (places + kHistoryTile - 1) / kHistoryTile;
  return tiles * layout.staging_block_bytes() * layout.shape.heads;
}

}  // namespace kivi::cuda
