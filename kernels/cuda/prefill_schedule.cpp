// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/prefill_schedule.h"

#include <algorithm>

namespace kivi::cuda {
namespace {

// Less than this at a time, and the launches cost more than the codes taken apart where they lie.
constexpr int64_t kTilesMin = 16;

int tiles_of(int places) { return (places + kHistoryTile - 1) / kHistoryTile; }

class Scheduler {
 public:
  Scheduler(const KvView& store, const StepView& step, int heads_q)
      : step_(step), format_(store.layout.format) {
    const KvShape& shape = store.layout.shape;
    const int64_t block = int64_t(store.layout.staging_block_bytes()) * shape.heads;
    // f16 pages are read where they lie.
    tiles_ = store.layout.format.kind == KvKind::f16 ? 0 : store.scratch_bytes / block;
    quantized_ = store.layout.format.kind != KvKind::f16;
    const bool splits = std::ranges::any_of(step.sequences, [&](const StepSequence& s) {
      return uses_scratch(s) && end_tile(s) - first_tile(s) > tiles_;
    });
    if (!splits) return;
    const int64_t states = int64_t(step.rows) * heads_q * (shape.head_dim + 2) * 4;
    tiles_ = std::max<int64_t>(0, store.scratch_bytes - states) / block;
    schedule_.states_offset = tiles_ * block;
  }

  PrefillSchedule run() {
    for (size_t i = 0; i < step_.sequences.size(); ++i) {
      const StepSequence& s = step_.sequences[i];
      if (s.row_count > 1 || (s.row_count == 1 && s.mode != KvMode::append)) add(int(i), s);
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
  int64_t tiles_ = 0;  // that scratch holds
  int64_t used_ = 0;   // by next_
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
