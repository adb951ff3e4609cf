// SPDX-License-Identifier: Apache-2.0
// Launchers of kv_append: a step's keys and values into pages, residual and staging.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <span>

#include "kernels/cuda/cache_arguments.h"

namespace kivi::cuda {

struct AppendArguments {
  // [layers t, 2 hk d] f16; rows and layers are so many elements apart.
  const __half* kv = nullptr;
  int64_t kv_stride = 0, kv_layer_stride = 0;
  CacheArguments cache;
  int sequence_count = 0;
  int layer = 0, layers = 1;  // the first, and how many
};

// Sequences with row_count 1 and mode `append`; others are left alone. One launch whose grid
// depends on shapes alone.
cudaError_t append_decodes(const AppendArguments& a, cudaStream_t stream);

// Other sequences, of any mode: `chunks` are their indices. The largest extents over them, from the
// host's copy of the step:
struct ChunkExtents {
  int rows_max = 0;        // new tokens, over all modes
  int pages_max = 0;       // pages that a sequence of mode `append` or `seal` may touch
  bool stages = false;     // any sequence of mode `stage`
  bool quantizes = false;  // any of mode `append` or `seal`
};
cudaError_t append_chunks(const AppendArguments& a, std::span<const int32_t> chunks,
                          const ChunkExtents& extents, cudaStream_t stream);

}  // namespace kivi::cuda
