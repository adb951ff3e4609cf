// SPDX-License-Identifier: Apache-2.0
// CudaBackend's ops that choose between kernels: products of few rows, attention, recorded steps,
// and sampling.
#include <algorithm>
#include <numbers>
#include <vector>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/kv_attend_decode.h"
#include "kernels/cuda/matmul_few_rows.h"
#include "kernels/cuda/prefill_attend.h"
#include "kernels/cuda/prefill_schedule.h"
#include "kernels/cuda/trace_range.h"

namespace kivi {

void CudaBackend::do_matmul(const Tensor& x, const Tensor& w, const Tensor& bias,
                            const Tensor& out) {
  if (cuda::has_few_rows(x, w, out))
    KIVI_CUDA_VERIFY(
        cuda::matmul_few_rows(x, w, bias, out, properties_.multiprocessors, stream_.get()));
  else
    matmul_.run(x, w, bias, out, stream_.get());
}

// The first time a key comes its ops run as they are (cuBLASLt chooses algorithms, kernels are
// loaded); the second time they are recorded; from then on they are replayed.
void CudaBackend::do_run_recorded(uint64_t key, const std::function<void()>& ops) {
  const TraceRange range("launch recorded step");
  const auto [place, first] = graphs_.try_emplace(key);
  if (first) return ops();
  Graph& graph = place->second;
  if (graph == nullptr) {
    cudaGraph_t recorded = nullptr;
    KIVI_CUDA_VERIFY(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal));
    ops();
    KIVI_CUDA_VERIFY(cudaStreamEndCapture(stream_.get(), &recorded));
    cudaGraphExec_t executable = nullptr;
    KIVI_CUDA_VERIFY(cudaGraphInstantiate(&executable, recorded, 0));
    KIVI_CUDA_VERIFY(cudaGraphDestroy(recorded));
    graph = Graph(executable);
  }
  KIVI_CUDA_VERIFY(cudaGraphLaunch(graph.get(), stream_.get()));
}

void CudaBackend::do_sample(const Tensor& logits, std::span<const SampleRow> rows,
                            const Tensor& ids) {
  const TraceRange range("launch sampling");
  sampler_.launch(logits, rows, ids, stream_.get());
}

void CudaBackend::collect_samples(std::vector<SampledToken>& out) {
  const TraceRange range("wait for samples");
  sampler_.collect(out);
}

namespace {

// The kernel of decode attention has these head sizes. Decodes of others go to flash attention.
bool has_decode_kernel(int head_dim) { return head_dim == 64 || head_dim == 128; }

// What a step's launches of decode attention share.
cuda::DecodeArguments decode_arguments(const KvView& store, const StepView& step, int heads_q,
                                       int layer) {
  return {.cache = cuda::cache_arguments(store, step),
          .sequence_count = int(step.sequences.size()),
          .groups = reinterpret_cast<const StepGroup*>(step.device_groups.data),
          .group_members = static_cast<const int32_t*>(step.device_group_members.data),
          .group_count = step.groups.empty() ? 0 : int(step.device_groups.rows()),
          .whole_rests = step.whole_rests,
          .heads_q = heads_q,
          .layer = layer,
          .window = step.sliding_window};
}

// One layer of each format that a layer has.
std::vector<int> layers_of_each_format(const KvLayout& layout) {
  std::vector<int> found = {0};
  if (layout.layer_bits.empty()) return found;
  for (int layer = 1; layer < layout.shape.layers; ++layer)
    if (std::ranges::none_of(found, [&](int other) {
          return layout.of_layer(other).format == layout.of_layer(layer).format;
        }))
      found.push_back(layer);
  return found;
}

}  // namespace

KeptGroups CudaBackend::keep_groups(const KvLayout& layout, int heads_q, const GroupRests& rests,
                                    std::vector<StepGroup>& groups) const {
  return cuda::keep_groups(layout, heads_q, rests, properties_, decode_workspace_, groups);
}

void CudaBackend::do_begin_step(const StepView& step, const KvView& store, int heads_q) {
  planned_decodes_.clear();
  if (!has_decode_kernel(store.layout.shape.head_dim) ||
      std::ranges::none_of(step.sequences, &StepSequence::is_decode))
    return;
  for (const int layer : layers_of_each_format(store.layout))
    plan_decodes(store.of_layer(layer), step, heads_q, layer);
}

int CudaBackend::plan_decodes(const KvView& store, const StepView& step, int heads_q, int layer) {
  const KvFormat& format = store.layout.format;
  int windows = 0, own = -1;  // those planned so far, and the index of this one
  for (const PlannedDecodes& plan : planned_decodes_) {
    windows = std::max(windows, plan.window_index + 1);
    if (plan.window != step.sliding_window) continue;
    if (plan.format == format) return plan.window_index;
    own = plan.window_index;
  }
  cuda::DecodeArguments a = decode_arguments(store, step, heads_q, layer);
  a.window_index = own >= 0 ? own : windows;
  planned_decodes_.push_back({step.sliding_window, a.window_index, format});
  plan_is_new_ = true;
  KIVI_CUDA_VERIFY(cuda::decode_attend(a, cuda::DecodeLaunchKind::plan, properties_,
                                       decode_workspace_, stream_.get()));
  return a.window_index;
}

// Sequences with one new token over the store go to the split-KV decode kernel, all others to flash
// attention; each kernel leaves the other's rows alone.
void CudaBackend::do_kv_attend(const Tensor& q, const Tensor& kv, const KvView& store,
                               const StepView& step, int layer, float scale, const Tensor& out) {
  const int d = store.layout.shape.head_dim;
  const float scale_log2 = scale * std::numbers::log2e_v<float>;
  const int heads_q = int(q.shape[1]) / d;
  const auto decodes = std::ranges::count_if(step.sequences, &StepSequence::is_decode);
  const auto chunks = std::ranges::count_if(
      step.sequences, [](const StepSequence& s) { return s.row_count > 0 && !s.is_decode(); });
  if (decodes > 0 && has_decode_kernel(d)) {
    cuda::DecodeArguments a = decode_arguments(store, step, heads_q, layer);
    a.window_index = plan_decodes(store, step, heads_q, layer);
    a.q = q.as<__half>();
    a.kv = kv.as<__half>();
    a.out = out.data;
    a.q_stride = q.row_stride;
    a.kv_stride = kv.row_stride;
    a.out_stride = out.row_stride;
    a.out_type = out.dtype;
    a.scale_log2 = scale_log2;
    KIVI_CUDA_VERIFY(cuda::decode_attend(
        a, plan_is_new_ ? cuda::DecodeLaunchKind::first : cuda::DecodeLaunchKind::next, properties_,
        decode_workspace_, stream_.get()));
    plan_is_new_ = false;
  }
  cuda::PrefillArguments a{.q = q.as<__half>(),
                           .kv = kv.as<__half>(),
                           .cache = cuda::cache_arguments(store, step),
                           .rows = step.rows,
                           .heads_q = heads_q,
                           .layer = layer,
                           .window = step.sliding_window,
                           .scale_log2 = scale_log2};
  if (decodes > 0 && !has_decode_kernel(d))
    KIVI_CUDA_VERIFY(cuda::prefill_attend(a, out.data, out.dtype, d, int(step.sequences.size()), 1,
                                          stream_.get()));
  if (chunks == 0) return;
  const cuda::PrefillSchedule schedule = cuda::schedule_prefill(store, step, heads_q);
  a.states = reinterpret_cast<float*>(store.scratch + schedule.states_offset);
  for (const cuda::PrefillLaunch& launch : schedule.launches) {
    a.work_count = int(launch.work.size());
    std::ranges::copy(launch.work, a.work);
    if (launch.tiles_max > 0)
      KIVI_CUDA_VERIFY(cuda::kv_dequantize(a, d, launch.tiles_max, stream_.get()));
    if (cuda::has_prefill_hopper(d) && !launch.reads_codes)
      KIVI_CUDA_VERIFY(cuda::prefill_attend_hopper(a, out.data, out.dtype, d,
                                                   properties_.multiprocessors, stream_.get()));
    else
      KIVI_CUDA_VERIFY(cuda::prefill_attend(a, out.data, out.dtype, d, a.work_count,
                                            launch.rows_max, stream_.get()));
    if (launch.merges)
      KIVI_CUDA_VERIFY(cuda::merge_prefill_states(a, d, launch.rows_max, stream_.get()));
  }
}

int64_t CudaBackend::scratch_bytes_for(const KvLayout& layout, int64_t tokens) const {
  return cuda::prefill_scratch_bytes(layout, tokens);
}

}  // namespace kivi
