// SPDX-License-Identifier: Apache-2.0
// Where the time of a launch of decode attention goes, for kernels_bench.
#pragma once

#include <functional>

#include "kernels/cuda/kv_attend_decode.h"

namespace kivi {

// Prints when the warps of a launch came to each place of its timeline, in microseconds since the
// launch before had ended: the mean over warps, the median and the last one; then how many units
// and ends of segments a warp has, and the cycles of waiting for a unit and of an end. Launches
// follow each other as the layers of a model; the first ones do not count. `arguments(layer)`: of
// one launch. Returns false where there is no kernel that notes its times: for formats other than
// kivi2 and kivi2.5 and for more than 8 query heads on a KV head.
bool print_timeline(const std::function<cuda::DecodeArguments(int)>& arguments,
                    const CudaProperties& device, const DecodeWorkspace& workspace,
                    cudaStream_t stream, const cuda::DecodeTuning& tuning);

}  // namespace kivi
