// SPDX-License-Identifier: Apache-2.0
// The two backends side by side: the same values as f32 on the CPU and as 16 bits on the GPU, with
// guard bytes round what the GPU writes.
#pragma once

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "kernels/backend.h"
#include "kernels/half.h"
#include "tests/cuda/tolerances.h"

namespace kivi::test {

// What activations are on the GPU.
inline constexpr DType kTypes[] = {DType::f16, DType::bf16};

// Most of the time of these tests is the CPU's.
inline int cpu_threads() { return std::clamp(int(std::thread::hardware_concurrency()), 4, 16); }

inline Backend& cpu() {
  static const auto backend = make_cpu_backend(cpu_threads());
  return *backend;
}

inline Backend& gpu() {
  static auto backend = make_cuda_backend(0);
  if (!backend.ok()) FAIL(backend.error().message);
  return **backend;
}

inline float rounded(float x, DType t) {
  return t == DType::f16 ? to_float(to_f16(x)) : t == DType::bf16 ? to_float(to_bf16(x)) : x;
}

// A matrix in both places. Values are representable in `type`.
class Pair {
 public:
  Pair(int64_t rows, int64_t columns, DType type, DType cpu_type = DType::f32)
      : rows_(rows), columns_(columns), type_(type), cpu_type_(cpu_type) {
    values_.resize(size_t(rows * columns), 0.f);
    cpu_bytes_.resize(values_.size() * size_of(cpu_type));
    auto buffer = gpu().allocate(values_.size() * size_of(type) + 2 * kGuard, "test");
    REQUIRE(buffer.ok());
    buffer_ = std::move(buffer).value();
    const std::vector<std::byte> poison(buffer_.bytes(), std::byte{0xA5});
    gpu().upload(buffer_.data(), poison.data(), poison.size());
  }

  void randomize(std::mt19937& random, float scale = 1) {
    std::normal_distribution<float> normal(0, scale);
    for (float& x : values_) x = rounded(normal(random), type_);
    send();
  }
  void set(std::vector<float> values) {
    values_ = std::move(values);
    for (float& x : values_) x = rounded(x, type_);
    send();
  }

  Tensor on_cpu() { return make_tensor(cpu_bytes_.data(), cpu_type_, rows_, columns_); }
  Tensor on_gpu() { return make_tensor(buffer_.data() + kGuard, type_, rows_, columns_); }
  const std::vector<float>& values() const { return values_; }

  int64_t columns() const { return columns_; }

  std::vector<float> cpu_result() { return decode(cpu_bytes_.data(), cpu_type_); }
  std::vector<float> gpu_result() {
    std::vector<std::byte> all(buffer_.bytes());
    gpu().download(all.data(), buffer_.data(), all.size());
    for (size_t i = 0; i < kGuard; ++i)
      REQUIRE((all[i] == std::byte{0xA5} && all[all.size() - 1 - i] == std::byte{0xA5}));
    return decode(all.data() + kGuard, type_);
  }

  // Whether the GPU's elements are the CPU's, judged in rows of `columns` (default: of the matrix).
  bool agrees(const RowTolerance& tolerance, int64_t columns = 0) {
    return close_everywhere(gpu_result(), cpu_result(), columns > 0 ? columns : columns_,
                            tolerance);
  }

 private:
  static constexpr size_t kGuard = 256;

  std::vector<float> decode(const std::byte* data, DType type) const {
    std::vector<float> out(values_.size());
    for (size_t i = 0; i < out.size(); ++i) {
      if (type == DType::f32) out[i] = reinterpret_cast<const float*>(data)[i];
      if (type == DType::f16) out[i] = to_float(reinterpret_cast<const f16*>(data)[i]);
      if (type == DType::bf16) out[i] = to_float(reinterpret_cast<const bf16*>(data)[i]);
    }
    return out;
  }
  static void encode(const std::vector<float>& values, DType type, std::byte* data) {
    for (size_t i = 0; i < values.size(); ++i) {
      if (type == DType::f32) reinterpret_cast<float*>(data)[i] = values[i];
      if (type == DType::f16) reinterpret_cast<f16*>(data)[i] = to_f16(values[i]);
      if (type == DType::bf16) reinterpret_cast<bf16*>(data)[i] = to_bf16(values[i]);
    }
  }
  void send() {
    encode(values_, cpu_type_, cpu_bytes_.data());
    std::vector<std::byte> bytes(values_.size() * size_of(type_));
    encode(values_, type_, bytes.data());
    gpu().upload(buffer_.data() + kGuard, bytes.data(), bytes.size());
  }

  int64_t rows_, columns_;
  DType type_, cpu_type_;
  std::vector<float> values_;
  std::vector<std::byte> cpu_bytes_;
  Buffer buffer_;
};

// i32 values in both places.
class PairOfInts {
 public:
  explicit PairOfInts(std::vector<int32_t> values) : values_(std::move(values)) {
    auto buffer = gpu().allocate(std::max<size_t>(values_.size(), 1) * 4, "test");
    REQUIRE(buffer.ok());
    buffer_ = std::move(buffer).value();
    gpu().upload(buffer_.data(), values_.data(), values_.size() * 4);
  }
  Tensor on_cpu() { return make_tensor(values_.data(), DType::i32, int64_t(values_.size())); }
  Tensor on_gpu() { return make_tensor(buffer_.data(), DType::i32, int64_t(values_.size())); }

 private:
  std::vector<int32_t> values_;
  Buffer buffer_;
};

}  // namespace kivi::test
