// SPDX-License-Identifier: Apache-2.0
// CudaBackend: the Backend on one NVIDIA GPU (sm_80 and newer; Hopper's paths where it has them).
//
// All ops go to one stream, in the order of the calls. Copies beside them have another (copier.h).
// Nothing but `download`, `synchronize`, `seconds_between`, `collect_samples` and staging memory
// that is still being copied from waits. Every op works with fixed addresses and a grid that
// depends on shapes alone, so that a decode step can be captured in a CUDA graph.
//
// Each group of ops has a source file of its own: do_<op> stands beside its kernels.
#pragma once

#include <array>
#include <map>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/copier.h"
#include "kernels/cuda/cuda_handles.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/sampler.h"
#include "kernels/cuda/upload.h"

namespace kivi {

namespace cuda {
struct TileProductWorkspace;
}

// What the kernels need to know of the device; read once.
struct CudaProperties {
  int device = 0;
  int multiprocessors = 0;
  int shared_bytes_max = 0;  // dynamic shared memory of one block, opted in
  int major = 0;             // compute capability
  int minor = 0;
  std::string name;
};

namespace cuda {
// The widest row that a norm takes (elementwise.cu).
inline constexpr int kNormWidthMax = 16384;
}  // namespace cuda

// Memory of decode attention that lives as long as the backend: the plans of a step, partial
// softmax states, those that a block gives to the next one, and the counters that find a segment's
// last arriver. See kv_attend_decode.h.
struct DecodeWorkspace {
  DeviceMemory line, borders, pieces, prefix, extents;
  DeviceMemory partials;
  DeviceMemory given;     // words of kNotGiven between launches
  DeviceMemory counters;  // i32, zero between launches
  int counters_count = 0;
  // Of groups that share pages (kv_attend_shared.h); null where the device has no kernel for them.
  DeviceMemory shared_plan, shared_states, shared_where;
  size_t shared_states_bytes = 0;
};

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(int device);
  ~CudaBackend() override;

  DeviceInfo info() const override;
  DType activation_type(DType weight) const override { return weight; }
  DType query_type() const override { return DType::f16; }
  Status check_shape(const KvShape& shape, int hidden) const override;
  bool multiplies(const WeightFormat& format) const override;
  ProductInput product_input(const Tensor& x, const Weight& w, const Tensor& bias,
                             const Tensor& out) override;
  int64_t product_scratch_bytes(const Weight& w, int64_t rows) const override;
  void use_product_scratch(std::byte* memory, int64_t bytes) override;
  int64_t scratch_bytes_for(const KvLayout& layout, int64_t tokens) const override;
  KeptGroups keep_groups(const KvLayout& layout, int heads_q, const GroupRests& rests,
                         std::vector<StepGroup>& groups) const override;

  void upload(void* device, const void* source, size_t bytes) override;
  void download(void* target, const void* device, size_t bytes) override;
  void fill_zero(void* device, size_t bytes) override;
  void copy(void* to, const void* from, size_t bytes) override;
  void synchronize() override;
  Result<HostMemory> allocate_host(size_t bytes) override;
  uint64_t copy_beside(std::span<const HostCopy> copies) override;
  uint64_t copied_beside() override { return copier_.done(); }
  double seconds_beside() const override { return copier_.seconds(); }
  void wait_beside(uint64_t batches) override { copier_.wait(batches, stream_.get()); }

  void mark(int index) override;
  double seconds_between(int from, int to) override;
  int logprobs_max() const override { return cuda::kMaxTopLogprobs; }
  void collect_samples(std::vector<SampledToken>& out) override;
  bool asynchronous() const override { return true; }

  // For the benchmarks and for graph capture.
  cudaStream_t stream() const { return stream_.get(); }
  const CudaProperties& properties() const { return properties_; }

 private:
  Result<std::byte*> do_allocate(size_t bytes) override;
  void do_free(std::byte* data, size_t bytes) override;

  KIVI_BACKEND_OPS(, override);
  void do_run_recorded(uint64_t key, const std::function<void()>& ops) override;
  // The ways of products.cpp. `scratch`: what is left of the product's scratch.
  void multiply_e4m3(const Tensor& x, const Weight& w, const Tensor& bias, const Tensor& out,
                     std::byte* scratch);
  void multiply_codes(const cuda::Matmul::Rows8& x, const Weight& w, const Tensor& bias,
                      const Tensor& out);
  bool multiply_tiles(const Tensor& x, const Weight& w, const Tensor& bias, const Tensor& out);
  cuda::TileProductWorkspace tile_workspace() const;
  void multiply_slabs(const Tensor& x, const Weight& w, const Tensor& bias, const Tensor& out,
                      std::byte* scratch);

  CudaProperties properties_;
  Stream stream_;

  cuda::Uploader uploader_;
  cuda::Copier copier_;
  std::array<Event, kMarks> marks_;  // made when they are first used

  std::map<uint64_t, Graph> graphs_;  // null: seen once, not recorded yet

  // The plans of decode attention that this step has so far: one for each window and format of its
  // layers (KvLayout::of_layer).
  struct PlannedDecodes {
    int window, window_index;
    KvFormat format;
  };
  std::vector<PlannedDecodes> planned_decodes_;
  // The index of the step's window among the step's windows. Makes the plan of the window and of
  // the store's format, which is that of `layer`, if no layer before had both.
  int plan_decodes(const KvView& store, const StepView& step, int heads_q, int layer);
  // No layer has attended since a plan was made: the next launch of decode attention must not
  // overtake the kernel that made it.
  bool plan_is_new_ = false;

  DecodeWorkspace decode_workspace_;
  cuda::Matmul matmul_;
  static constexpr int64_t kTileCounters = 32768;
  DeviceMemory tile_counters_;  // i32, zero between products (matmul_tiles.h)
  std::byte* product_scratch_ = nullptr;
  int64_t product_scratch_bytes_ = 0;
  static constexpr int kSampleRowsMax = 4096;
  cuda::Sampler sampler_{kSampleRowsMax};
};

}  // namespace kivi
