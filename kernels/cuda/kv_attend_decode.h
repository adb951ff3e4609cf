// SPDX-License-Identifier: Apache-2.0
// Launcher of decode attention: one new token a sequence, over the paged store
// (docs/design/decode-attention.md).
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <vector>

#include "kernels/cuda/cache_arguments.h"
#include "kernels/cuda/cuda_handles.h"

namespace kivi {
struct CudaProperties;
struct DecodeWorkspace;
}  // namespace kivi

namespace kivi::cuda {

// Windows that the layers of a step may have: none, and one other.
inline constexpr int kDecodeWindowsMax = 2;

struct DecodeArguments {
  const __half* q = nullptr;   // [t, hq d], rows `q_stride` apart
  const __half* kv = nullptr;  // [t, 2 hk d] f16, the step's own rows, `kv_stride` apart
  void* out = nullptr;         // [t, hq d] of `out_type`, rows `out_stride` apart
  int64_t q_stride = 0;
  int64_t kv_stride = 0;
  int64_t out_stride = 0;
  DType out_type = DType::f16;  // f16, bf16
  CacheArguments cache;
  int sequence_count = 0;
  // Groups that share pages: [group_count] of which some may be padding, and their members. Layers
  // with a window read shared pages like others. 0: so do all layers.
  const StepGroup* groups = nullptr;       // device
  const int32_t* group_members = nullptr;  // device
  int group_count = 0;
  bool whole_rests = false;  // StepView::whole_rests
  int heads_q = 0;
  int layer = 0;
  int window = 0;          // sliding window in tokens; 0: none
  int window_index = 0;    // of the window among the step's, below kDecodeWindowsMax
  float scale_log2 = 0.f;  // scale * log2(e)
};

// How a launch is cut up. The defaults measured best
// (docs/design/decisions/005-warps-and-stages.md).
struct DecodeTuning {
  int warps = 0;   // a block, 1..16; 0: default
  int stages = 0;  // of a warp's ring, 2..8; 0: 2, fewer warps where they do not fit
  int blocks_per_multiprocessor = 0;  // 0: default
  int tile_weight = 0;  // of 16 tokens of 16 bits, where a page weighs its bytes / 512; 0: the same
  bool heads_apart = false;  // blocks of query heads each read the pages, however many
  int heads_tiles = 0;       // of kv_attend_decode_heads.h; 0: default
};

// The cut of a step into pieces of work depends on its sequences, on the shapes, the format, the
// window and the tuning, not on the layer. So it is made once a step and window, by a kernel of its
// own (some microseconds).
enum class DecodeLaunchKind {
  plan,   // make the cut; attend to nothing
  first,  // attend after the cut was made: in order with the kernels before
  next,   // start while the kernel before still runs, and read the layer's store at once
};

// out = softmax(q K^T * scale) V for the sequences with row_count 1 and mode `append`; the rows of
// others are left alone. head_dim 64 or 128; any number of query heads a KV head.
// cudaErrorInvalidValue for a format or head_dim that has no kernel.
cudaError_t decode_attend(const DecodeArguments& a, DecodeLaunchKind kind,
                          const CudaProperties& device, const DecodeWorkspace& workspace,
                          cudaStream_t stream, const DecodeTuning& tuning = {});

// Backend::keep_groups.
KeptGroups keep_groups(const KvLayout& layout, int heads_q, const GroupRests& rests,
                       const CudaProperties& device, const DecodeWorkspace& workspace,
                       std::vector<StepGroup>& groups);

DecodeWorkspace make_decode_workspace(const CudaProperties& device, cudaStream_t stream);

}  // namespace kivi::cuda
