// SPDX-License-Identifier: Apache-2.0
// A named range of host time in a trace of Nsight Systems; costs nothing where none is taken.
#pragma once

#include <nvtx3/nvToolsExt.h>

namespace kivi {

class TraceRange {
 public:
  explicit TraceRange(const char* name) { nvtxRangePushA(name); }
  ~TraceRange() { nvtxRangePop(); }
  TraceRange(const TraceRange&) = delete;
  TraceRange& operator=(const TraceRange&) = delete;
};

}  // namespace kivi
