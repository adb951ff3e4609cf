// SPDX-License-Identifier: Apache-2.0
// What ops are timed on: random numbers that rotate over more memory than a cache holds, and a
// key-value store with the caches of equal sequences in it.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/backend.h"

namespace kivi {

// Device memory full of numbers of one type, uniform with mean 0; always the same ones.
class RandomData {
 public:
  // `deviation`: standard deviation.
  static Result<RandomData> create(Backend& backend, int64_t bytes, DType dtype, float deviation);

  // How many tensors of this size there is room for without overlap: at least 1, at most 64.
  int copies(int64_t rows, int64_t columns) const;
  bool holds(int64_t rows, int64_t columns) const;
  // Number `copy` of them.
  Tensor matrix(int copy, int64_t rows, int64_t columns) const;
  Tensor vector(int copy, int64_t n) const;

 private:
  Tensor at(int copy, int64_t size) const;

  Buffer memory_;
  DType dtype_ = DType::f32;
};

// Copies of one quantized matrix [n, k] that together fill some memory. It repeats a few rows of
// random numbers.
class RandomWeight {
 public:
  // At least one copy, and as many as fit into `bytes`, up to 64.
  static Result<RandomWeight> create(Backend& backend, const WeightFormat& format, int64_t n,
                                     int64_t k, int64_t bytes);

  int copies() const { return int(copies_.size()); }
  const Weight& copy(int i) const { return copies_[size_t(i)]; }
  // Of one copy: codes and scales.
  int64_t bytes() const { return bytes_; }

 private:
  Buffer memory_;
  std::vector<Weight> copies_;
  int64_t bytes_ = 0;
};

// i32 on the device.
Result<Buffer> upload_ids(Backend& backend, const std::vector<int32_t>& ids);

// One step over equal sequences of a store, and its device copies.
class BenchmarkStep {
 public:
  // Sequence i computes `row_count` rows upon `pasts[i]` cached tokens; its pages are entries
  // [i * pages_each, (i + 1) * pages_each) of `page_table`.
  static Result<BenchmarkStep> create(Backend& backend, const std::vector<int>& pasts,
                                      int row_count, int pages_each,
                                      const std::vector<int32_t>& page_table);
  BenchmarkStep(BenchmarkStep&&) = default;
  BenchmarkStep& operator=(BenchmarkStep&&) = default;

  const StepView& view() const { return view_; }
  int past(size_t i) const { return sequences_[i].past; }

 private:
  BenchmarkStep() = default;
  std::vector<StepSequence> sequences_;
  std::vector<int32_t> page_table_;
  Buffer device_;
  StepView view_;
};

// A store whose layers are copies to rotate over: each holds the caches of equal sequences, made by
// kv_append from random rows. The pages of a sequence lie scattered.
class BenchmarkStore {
 public:
  struct Shape {
    KvFormat format;
    int heads = 0, head_dim = 0;
    int sequences = 0;
    int cached = 0;  // tokens of each
    int room = 0;    // tokens that its pages hold
    int layers = 0;  // 0: as many as `rotation_bytes` asks for
    int64_t scratch_bytes = 0;
  };
  // kv: random rows [rows, 2 hk d] f16, more than
  // sequences.
  static Result<BenchmarkStore> create(Backend& backend, const Shape& shape, const Tensor& kv,
                                       int64_t rotation_bytes);

  const KvView& view() const { return view_; }
  int layers() const { return view_.layout.shape.layers; }
  const KvLayout& layout() const { return view_.layout; }
  // A step of all sequences with `row_count` new rows each upon pasts[i] tokens.
  Result<BenchmarkStep> step(const std::vector<int>& pasts, int row_count) const;

 private:
  BenchmarkStore() = default;
  Backend* backend_ = nullptr;
  Buffer memory_;
  KvView view_;
  int pages_each_ = 0;
  std::vector<int32_t> page_table_;
};

}  // namespace kivi
