// SPDX-License-Identifier: Apache-2.0
// One step as the device sees it: which rows belong to which sequence, and what they attend to.
// Plain data. The host arrays live until the step's ops are enqueued. engine/model/step_input makes
// the device copies (tensors) in one packed transfer.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/kv_page.h"
#include "kernels/tensor.h"

namespace kivi {

// Says where a sequence's history is read and where its new tokens go (docs/design/kv-format.md,
// section 7).
enum class KvMode : int32_t {
  // Read history from pages and residual, and append new tokens to them. Used by decodes, by
  // prompts of one chunk, and by all chunks of prefill mode `stream`. A row attends to the tokens
  // of its own step in f16.
  append,
  // Read history from staging, and append new tokens to staging. Used by all chunks of prefill mode
  // `exact` but the last.
  stage,
  // Read history from staging, then quantize the whole prompt (staging and the tokens of this step)
  // into pages and residual. Used by the last chunk of prefill mode `exact`.
  seal,
};

// One sequence of a step. The rows of a step are its tokens, sequence after sequence.
struct StepSequence {
  int32_t row_begin = 0;      // first row of this sequence
  int32_t row_count = 0;      // new tokens: 1 for decode, more for a prompt chunk
  int32_t past = 0;           // tokens cached before this step
  int32_t slot = 0;           // residual slot (formats without residual: ignored)
  int32_t pages_begin = 0;    // first entry of StepView::page_table
  int32_t pages_count = 0;    // holds past + row_count tokens (mode `stage`: 0)
  int32_t staging_begin = 0;  // first entry of StepView::page_table for staging pages
  int32_t staging_count = 0;  // modes stage (past + row_count tokens) and seal (past tokens)
  KvMode mode = KvMode::append;
  // KIVI formats: paged positions (kv_page.h). The values before `values_from` are already in pages
  // that other sequences may hold, so kv_append does not write them. The values before `values_to`
  // are also written to pages, although the residual keeps them; their tokens are stored by this
  // step, or are in the residual. A step of one row in mode append cannot do this.
  int32_t values_from = 0;
  int32_t values_to = 0;
  // The number of pages, from the first one of this sequence on, that its group attends to at once
  // (StepGroup); 0 = it is in no group. Values and keys of these pages are all quantized (fp16
  // pages: stored).
  int32_t shared_pages = 0;

  // A new token upon stored ones. Kernels of their own serve this case.
  KIVI_HOST_DEVICE bool is_decode() const { return row_count == 1 && mode == KvMode::append; }
};
static_assert(sizeof(StepSequence) == 48);

// Sequences of one new token in mode `append` that have the same first pages, and so the same
// sinks up to rounding: their first tokens are the same. A device may read these pages, and the
// sinks of one member, once for all members. The result is the same up to rounding.
struct StepGroup {
  int32_t pages_begin = 0;    // first entry of StepView::page_table of one of the members
  int32_t pages = 0;          // StepSequence::shared_pages of all members
  int32_t members_begin = 0;  // first entry of StepView::group_members
  int32_t member_count = 0;   // 0 = this entry is padding
};
static_assert(sizeof(StepGroup) == 16);

// What members of groups attend to beside the shared pages: their rests.
struct GroupRests {
  int64_t pages = 0;  // of all members together
  // Of the longest rest, where all sequences of one new token are members and their rests are
  // equally long, or differ by few tokens; else -1.
  int tokens = -1;
};
// What a device makes of the groups of a step.
struct KeptGroups {
  int most = 0;              // groups that a step may have
  bool whole_rests = false;  // StepView::whole_rests
};

// A step may be padded, so that it has one of the few shapes for which graphs are recorded. Rows
// beyond those of the sequences are computed and ignored. Sequences with row_count 0 take no part.
struct StepView {
  int rows = 0;
  std::span<const StepSequence> sequences;  // host
  std::span<const int32_t> page_table;      // host
  Tensor token_ids;                         // [rows] i32, device
  Tensor positions;                         // [rows] i32, device
  // The length of the row's sequence, for dynamic rotary scaling: the prompt's length for rows of
  // the prompt, position + 1 for other rows. So it does not depend on how the work is split.
  Tensor rope_lengths;       // [rows] i32, device
  Tensor device_sequences;   // [sequences, 12] i32, device: StepSequence each
  Tensor device_page_table;  // [entries] i32, device
  // Sequences that are stored a second time, up to an earlier token and with another slot
  // (PlannedCapture). Their rows are rows of the step.
  std::span<const StepSequence> captures;  // host
  Tensor device_captures;                  // [captures, 12] i32, device
  // Which sequences share pages. The device copies may be padded, so that steps of one shape have
  // the same addresses. Empty: no sequence has shared pages.
  std::span<const StepGroup> groups;       // host
  std::span<const int32_t> group_members;  // host: indices in `sequences`, group after group
  Tensor device_groups;                    // [groups, 4] i32, device: StepGroup each
  Tensor device_group_members;             // [members] i32, device
  // All sequences of one new token are members of groups, what they attend to beside the shared
  // pages is equally long or nearly, and the device asked for this (Backend::keep_groups): no two
  // of its workers share what a member has for itself.
  bool whole_rests = false;
  // Of the layer that attends: a query at p attends to (p - window, p]; 0 = no window. Layers of a
  // step may differ.
  int sliding_window = 0;
};

}  // namespace kivi
