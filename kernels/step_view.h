// One step as the device sees it: which rows belong to which sequence, and what they attend.
// Plain data. The host arrays live until the step's ops are enqueued; the device copies (tensors)
// are made by engine/model/step_input in one packed transfer.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/kv_page.h"
#include "kernels/tensor.h"

namespace kivi {

// Where a sequence's history is read and its new tokens go.
enum class KvMode : int32_t {
  // History from pages and residual. New tokens are appended to pages and residual. Used by decode,
  // by prompts of one chunk, and by every chunk of prefill mode `stream`. A row attends to the
  // tokens of its own step in f16.
  append,
  // Prefill mode `exact`, not the last chunk: history from staging, new tokens to staging.
  stage,
  // Prefill mode `exact`, last chunk: history from staging. Afterwards the whole prompt (staging,
  // then the tokens of this step) is quantized into pages and residual.
  seal,
};

// One sequence of a step. Rows of a step are its tokens, sequence after sequence.
struct StepSequence {
  int32_t row_begin = 0;      // first row of this sequence
  int32_t row_count = 0;      // new tokens: 1 for decode, more for a prompt chunk
  int32_t past = 0;           // tokens cached before this step
  int32_t slot = 0;           // residual slot (formats without residual: ignored)
  int32_t pages_begin = 0;    // first entry of StepView::page_table
  int32_t pages_count = 0;    // holds past + row_count tokens (mode `stage`: 0)
  int32_t staging_begin = 0;  // first entry of StepView::page_table for staging pages
  int32_t staging_count = 0;  // modes stage (past + row_count tokens) and commit (past tokens)
  KvMode mode = KvMode::append;
};
static_assert(sizeof(StepSequence) == 36);

// A step may be padded, so that it has one of a few shapes (graphs): rows beyond those of the
// sequences are computed and mean nothing; sequences with row_count 0 take no part.
struct StepView {
  int rows = 0;
  std::span<const StepSequence> sequences;  // host
  std::span<const int32_t> page_table;      // host
  Tensor token_ids;                         // [rows] i32, device
  Tensor positions;                         // [rows] i32, device
  // Tokens of the sequence when the row was first computed: of a prompt's rows the prompt's, of
  // others position + 1. What dynamic rotary scaling goes by; the same however work is split.
  Tensor rope_lengths;       // [rows] i32, device
  Tensor device_sequences;   // [sequences, 9] i32, device: StepSequence each
  Tensor device_page_table;  // [entries] i32, device
  int sliding_window = 0;    // 0: none; else a query at p attends (p - window, p]
};

}  // namespace kivi
