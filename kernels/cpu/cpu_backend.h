// SPDX-License-Identifier: Apache-2.0
// CpuBackend: the meaning of every op, on the host's memory and threads. One source file for each
// group of ops; the vector code in them is compiled for AVX2, AVX-512 and the baseline, and chosen
// at run time (kernels/cpu/simd-inl.h).
//
// Every op is done when its call returns. Copies beside the ops are made by a thread of their own.
// Thread rule: one thread at a time.
#pragma once

#include <array>
#include <chrono>
#include <deque>
#include <limits>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/copier.h"
#include "kernels/cpu/thread_pool.h"

namespace kivi {

// Working memory of one thread of the pool. Grows, never shrinks; its content does not outlive the
// op (but for packed rows of x within one matmul).
struct Scratch {
  // At least `count` floats, 64-byte aligned.
  float* floats(size_t count) {
    const size_t lines = count / 16 + 1;  // at least one, so that data() is never null
    if (memory.size() < lines) memory.resize(lines);
    return memory.data()->values;
  }
  struct alignas(64) Line {
    float values[16];
  };
  std::vector<Line> memory;
  // Which block of which matmul's x lies packed in `memory`.
  int64_t packing = 0;
  int64_t packed_block = 0;
};

class CpuBackend : public Backend {
 public:
  explicit CpuBackend(int threads);

  DeviceInfo info() const override;
  DType activation_type(DType) const override { return DType::f32; }
  DType query_type() const override { return DType::f32; }
  // For tests: turns the instructions for dot products of bytes off, which not every processor has.
  void use_byte_dots(bool use) { byte_dots_ = use; }
  bool multiplies(const WeightFormat&) const override { return true; }
  ProductInput product_input(const Tensor&, const Weight& w, const Tensor&,
                             const Tensor&) override {
    return w.format.kind == WeightKind::e4m3 ? ProductInput::plain : ProductInput::bytes;
  }

  void upload(void* device, const void* source, size_t bytes) override;
  void download(void* target, const void* device, size_t bytes) override;
  void fill_zero(void* device, size_t bytes) override;
  void copy(void* to, const void* from, size_t bytes) override;
  void synchronize() override { copier_.wait(copier_.enqueued()); }
  Result<HostMemory> allocate_host(size_t bytes) override;
  uint64_t copy_beside(std::span<const HostCopy> copies) override {
    return copier_.enqueue(copies);
  }
  uint64_t copied_beside() override { return copier_.done(); }
  double seconds_beside() const override { return copier_.seconds(); }
  // Ops are done when they return, so the caller waits.
  void wait_beside(uint64_t batches) override { copier_.wait(batches); }
  // For tests: every batch of copies takes this long.
  void delay_copies(std::chrono::microseconds delay) { copier_.delay(delay); }
  void mark(int index) override;
  double seconds_between(int from, int to) override;
  int logprobs_max() const override { return std::numeric_limits<int>::max(); }
  void collect_samples(std::vector<SampledToken>& out) override;

 private:
  Result<std::byte*> do_allocate(size_t bytes) override;
  void do_free(std::byte* data, size_t bytes) override;

  KIVI_BACKEND_OPS(, override);

  // Cosines and sines of a step's positions, [t][cosines, sines], for its next layers. Kept by
  // value: equal positions and frequencies have equal turns.
  struct Turns {
    std::vector<int32_t> positions;
    std::vector<float> frequencies;
    std::vector<float> ratios;
    float attention_factor = 1;
    std::vector<float> values;

    bool equal(std::span<const int32_t> p, std::span<const float> f, std::span<const float> r,
               float factor) const;
  };
  // Where an op puts row i of an operand before finish_row(), which quantizes the row if asked to.
  float* operand_row(const Operand& out, int64_t i, int worker);
  static void finish_row(const Operand& out, int64_t i, const float* y);
  template <class Multiply>
  void matmul_rows(const Tensor& x, int64_t n, DType packing, const Tensor& out,
                   const Multiply& multiply);
  void matmul_tiles(const Tensor& x, const Weight& w, const Tensor& bias, const Tensor& out);
  void matmul_e4m3(const Tensor& x, const Weight& w, const Tensor& bias, const Tensor& out);
  const float* bias_floats(const Tensor& bias);
  const float* turns_of(const Tensor& positions, const Rope& rope);

  ThreadPool pool_;
  Copier copier_;
  std::array<std::chrono::steady_clock::time_point, kMarks> marks_;
  Turns turns_;
  std::vector<float> ratios_;     // of the step, dynamic rope scaling
  std::vector<Scratch> scratch_;  // one a thread of the pool
  Scratch partials_;              // states of attention over segments
  bool byte_dots_ = true;
  int64_t packing_ = 0;                            // counts matmuls
  Scratch quantized_rows_;                         // of x, for quantized weights
  Scratch bias_;                                   // in f32, for quantized weights
  std::deque<std::vector<SampledToken>> samples_;  // not collected yet, oldest first
};

}  // namespace kivi
