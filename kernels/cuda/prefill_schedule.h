// SPDX-License-Identifier: Apache-2.0
// How the attention of a step's prompt chunks is cut into launches: what of each history is put
// into scratch memory when. Arithmetic on the host; the sequences' lengths decide.
#pragma once

#include <vector>

#include "kernels/cuda/prefill_attend.h"

namespace kivi::cuda {

struct PrefillLaunch {
  std::vector<PrefillWork> work;  // at most kPrefillWorkMax
  int rows_max = 0;               // of one sequence
  int tiles_max = 0;              // of one sequence in scratch; 0: nothing to dequantize
  bool reads_codes = false;       // some history is read as codes: scratch is too small
  bool merges = false;            // some history is in several ranges: merge_prefill_states follows
};

struct PrefillSchedule {
  std::vector<PrefillLaunch> launches;  // in order
  int64_t states_offset = 0;            // bytes in scratch: softmax states between launches
};

// Sequences of one row in mode append are left out. A sequence whose history does not fit into
// scratch is attended in several launches, block after block of its tokens. Where the step has few
// rows, a long history is attended in ranges at once, so that they occupy the device.
PrefillSchedule schedule_prefill(const KvView& store, const StepView& step, int heads_q);

// Bytes of scratch that hold the history of `tokens` tokens; 0 for f16 pages.
int64_t prefill_scratch_bytes(const KvLayout& layout, int64_t tokens);

}  // namespace kivi::cuda
