#include <algorithm>
#include <bit>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/decode_work.cuh"
#include "kernels/cuda/kv_attend_decode.h"
#include "kernels/cuda/kv_attend_decode_launch.h"

namespace kivi::cuda {
namespace {

constexpr int kWarpsMax = 8;           // of a block
constexpr int kBlocksMax = 2;          // a multiprocessor
constexpr int kCountersMax = 1 << 20;  // segments of a launch
constexpr int kWeightBytes = 512;      // what a weight of 1 stands for

// Floats of one partial state: 16 heads (two blocks of 8) of 128 channels, maxima and sums.
constexpr size_t kPartialFloatsMax = 2 * (8 * 128 + 16);

DecodeLaunch describe(const DecodeArguments& s, bool wide) {
  const KvLayout& layout = s.store.layout;
  const int d = layout.shape.head_dim, halves = layout.page_tokens() / kUnitTokens;
  DecodeLaunch a{};
  a.q = s.q, a.kv = s.kv, a.out = s.out;
  a.q_stride = s.q_stride, a.kv_stride = s.kv_stride, a.out_stride = s.out_stride;
  a.block_bytes = layout.block_bytes(), a.slab_bytes = layout.residual_slab_bytes();
  a.page_stride = int64_t(a.block_bytes) * layout.shape.heads;
  a.slot_stride = int64_t(a.slab_bytes) * layout.shape.heads;
  a.pages = s.store.page_block(s.layer, 0, 0);
  if (s.store.residual != nullptr) a.residual = s.store.residual_slab(s.layer, 0, 0);
  a.sequences = s.sequences, a.page_table = s.page_table;
  a.kind = layout.format.kind;
  a.group = std::max(1, layout.format.group);
  a.group_shift = std::countr_zero(unsigned(a.group));
  a.page_shift = std::countr_zero(unsigned(layout.page_tokens()));
  a.residual_rows = std::max(1, layout.format.residual);
  a.residual_inverse = 1.f / float(a.residual_rows);
  a.sequence_count = s.sequence_count, a.kv_heads = layout.shape.heads;
  a.ratio = s.heads_q / a.kv_heads;
  const int heads_block = wide ? 16 : 8;
  a.head_blocks = (a.ratio + heads_block - 1) / heads_block;
  a.pair_shift = a.ratio <= 2 ? 0 : a.ratio <= 4 ? 1 : 2;
  a.window = s.window, a.scale_log2 = s.scale_log2, a.out_bf16 = s.out_type == DType::bf16;
  a.block_kp = layout.key_parameters_offset();
  a.block_vc = layout.value_codes_offset();
  a.block_vp = layout.value_parameters_offset();
  const bool kivi = layout.format.kind == KvKind::kivi;
  a.stage_kp = layout.key_codes_bytes() / halves;
  a.stage_vc = a.stage_kp + (kivi ? 4 * d * std::max(1, kUnitTokens / layout.format.group) : 0);
  a.stage_vp = a.stage_vc + layout.value_codes_bytes() / halves;
  a.unit_bytes = a.stage_vp + layout.value_parameters_bytes() / halves;
  const int tile_bytes = 4 * kTileTokens * d;  // also holds the step's own token
  a.stage_bytes =
      layout.format.kind == KvKind::f16 ? tile_bytes : std::max(a.unit_bytes, tile_bytes);
  a.page_weight = a.unit_bytes / kWeightBytes;
  a.tile_weight = tile_bytes / kWeightBytes;
  const int weight_max =
      layout.format.kind == KvKind::f16 ? a.tile_weight : std::max(a.page_weight, a.tile_weight);
  a.page_weight_inverse = 1.f / float(a.page_weight);
  a.tile_weight_inverse = 1.f / float(a.tile_weight);
  a.weight_max_inverse = 1.f / float(weight_max);
  return a;
}

using Launcher = cudaError_t (*)(const DecodeLaunch&, const DecodeGrid&, bool, cudaStream_t);

template <int D>
Launcher launcher_of(const KvFormat& f) {
  if (f.kind == KvKind::f16) return launch_decode<D, 16, 16>;
  if (f.kind == KvKind::f8) return launch_decode<D, 8, 8>;
  if (f.key_bits == 2 && f.value_bits == 2) return launch_decode<D, 2, 2>;
  if (f.key_bits == 4 && f.value_bits == 4) return launch_decode<D, 4, 4>;
  if (f.key_bits == 4 && f.value_bits == 2) return launch_decode<D, 4, 2>;
  if (f.key_bits == 2 && f.value_bits == 4) return launch_decode<D, 2, 4>;
  return nullptr;
}

}  // namespace

cudaError_t decode_attend(const DecodeArguments& s, const CudaProperties& device,
                          const DecodeWorkspace& workspace, cudaStream_t stream,
                          const DecodeTuning& tuning) {
  const int d = s.store.layout.shape.head_dim;
  const Launcher launch = d == 128  ? launcher_of<128>(s.store.layout.format)
                          : d == 64 ? launcher_of<64>(s.store.layout.format)
                                    : nullptr;
  if (launch == nullptr) return cudaErrorInvalidValue;
  const bool wide = s.heads_q / s.store.layout.shape.heads > 8;
  DecodeLaunch a = describe(s, wide);
  a.partials = reinterpret_cast<float*>(workspace.partials.get());
  a.counters = reinterpret_cast<int*>(workspace.counters.get());
  VERIFY(int64_t(a.sequence_count) * a.kv_heads * a.head_blocks <= workspace.counters_count);

  DecodeGrid grid{};
  const int warps_most = wide ? 4 : kWarpsMax;
  const int per_multiprocessor = std::clamp(tuning.blocks_per_multiprocessor, 1, kBlocksMax);
  // A multiprocessor keeps 1 KB of each block's shared memory for itself.
  const int room = (device.shared_bytes_max + 1024) / per_multiprocessor - 1024;
  grid.warps = std::min(tuning.warps > 0 ? tuning.warps : warps_most, warps_most);
  auto shared_bytes = [&] {
    return decode_shared(grid.warps, a.stages, a.sequence_count, d, wide ? 2 : 1, a.pair_shift)
               .ring +
           grid.warps * a.stages * a.stage_bytes;
  };
  a.stages = tuning.stages > 0 ? tuning.stages : 2;
  while (shared_bytes() > room && a.stages > 2) --a.stages;
  while (shared_bytes() > room && grid.warps > 1) --grid.warps;
  grid.blocks = device.multiprocessors * per_multiprocessor;
  grid.shared_bytes = size_t(shared_bytes());
  a.blocks_inverse = 1.f / float(grid.blocks);
  return launch(a, grid, wide, stream);
}

DecodeWorkspace make_decode_workspace(const CudaProperties& device, cudaStream_t stream) {
  DecodeWorkspace w;
  const size_t blocks = size_t(device.multiprocessors) * kBlocksMax;
  w.partials_bytes = 2 * blocks * kPartialFloatsMax * sizeof(float);
  w.partials = make_device_memory(w.partials_bytes);
  w.counters_count = kCountersMax;
  w.counters = make_device_memory(size_t(kCountersMax) * sizeof(int));
  CUDA_VERIFY(cudaMemsetAsync(w.counters.get(), 0, size_t(kCountersMax) * sizeof(int), stream));
  return w;
}

}  // namespace kivi::cuda
