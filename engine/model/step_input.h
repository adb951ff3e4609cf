// SPDX-License-Identifier: Apache-2.0
// StepInput: turns a BatchPlan into what the device reads. Ids, positions, sequences, gathered
// rows, groups that share pages, and the page table are packed into one host buffer and sent in one
// copy. The page table is last, so that for steps of equal shape every tensor has the same address
// (graphs). Engine thread only.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/batch_plan.h"
#include "engine/model/page_groups.h"
#include "kernels/backend.h"
#include "kernels/kv_page.h"
#include "kernels/step_view.h"

namespace kivi {

class StepInput {
 public:
  // The largest step.
  struct Limits {
    int rows = 0;
    int sequences = 0;
    int captures = 0;
    int64_t page_entries = 0;  // of pages and staging pages, all sequences and captures
    int heads_q = 0;           // query heads of a layer
  };
  static int64_t device_bytes(const Limits& limits);

  // The backend must outlive it.
  static Result<StepInput> create(Backend& backend, const Limits& limits);

  // A row whose logits are wanted: sampled, or scored against the prompt's next token.
  struct WantedRow {
    int planned = 0;   // index in plan.sequences
    int position = 0;  // of the row's token in its sequence
    bool scored = false;
  };

  // Fills and uploads. view(), wanted() and gather() describe this plan until the next call. Rows
  // (and sequences) are padded to `rows_padded` where that is more than the plan has; a token that
  // is not known yet (-1) becomes -1 - Sequence::sampled_row.
  void fill(const BatchPlan& plan, const KvLayout& layout, int rows_padded = 0);

  const Limits& limits() const { return limits_; }
  const StepView& view() const { return view_; }
  // Sequence after sequence: scored rows in order, then the sampled one.
  std::span<const WantedRow> wanted() const { return wanted_; }
  // The rows of the step of wanted()[begin, begin + count): [count] i32 on the device.
  Tensor gather(int64_t begin, int64_t count) const { return rows_.slice_rows(begin, count); }

 private:
  StepInput() = default;
  void add(const PlannedSequence& planned, int index, const KvLayout& layout);
  void add(const PlannedCapture& capture, const PlannedSequence& planned, const KvLayout& layout);
  // Appends the first pages and staging pages of a sequence to the page table, and sets where.
  void add_pages(const Sequence& sequence, int pages, int staging, StepSequence& s);
  // Groups the sequences that share pages, as far as the backend reads these once for a group. The
  // step is padded to `sequences` sequences.
  void group(const KvLayout& layout, int sequences);
  // Copies `count` words into the packed buffer; returns where they will be on the device.
  int32_t* pack(const void* source, size_t count);

  Backend* backend_ = nullptr;
  Limits limits_;
  Buffer device_;
  std::vector<int32_t> packed_;  // host image of device_
  // Parts of the packed buffer, gathered here first.
  std::vector<int32_t> ids_, positions_, lengths_, gather_, page_table_;
  std::vector<StepSequence> sequences_, captures_;
  std::vector<WantedRow> wanted_;
  PageGroups found_, groups_;  // all, and those of the step
  int64_t groups_rows_ = 0;    // of the device's copy
  Tensor rows_;
  StepView view_;
};

}  // namespace kivi
