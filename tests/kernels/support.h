// SPDX-License-Identifier: Apache-2.0
// What the kernel tests share: guarded tensors, random numbers from a printed seed.
#pragma once

#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <ctime>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/half.h"
#include "tests/kernels/tolerances.h"

namespace kivi::test {

inline constexpr DType kWeightTypes[] = {DType::f32, DType::f16, DType::bf16};

// What a failed check says of a layout.
inline std::string text_of(const KvLayout& l) {
  return "K" + std::to_string(l.format.key_bits) + "V" + std::to_string(l.format.value_bits) +
         " G " + std::to_string(l.format.group) + " R " + std::to_string(l.format.residual) +
         " S " + std::to_string(l.format.sinks) + " parameters " +
         std::to_string(l.format.parameter_bits) + " d " + std::to_string(l.shape.head_dim);
}

inline float as_float(float x) { return x; }
inline float as_float(f16 x) { return to_float(x); }
inline float as_float(bf16 x) { return to_float(x); }
inline float as_float(int32_t x) { return float(x); }

inline void assign(float& to, float x) { to = x; }
inline void assign(f16& to, float x) { to = to_f16(x); }
inline void assign(bf16& to, float x) { to = to_bf16(x); }
inline void assign(int32_t& to, float x) { to = int32_t(x); }

// A tensor in memory of its own with guard bytes before, behind and (where `gap` > 0) between its
// rows. intact() says whether all of them still stand.
class Guarded {
 public:
  Guarded(DType dtype, int64_t rows, int64_t columns, int64_t gap = 0)
      : stride_(columns + gap), size_(size_of(dtype)) {
    const size_t bytes = size_t(kGuard * 2 + rows * stride_) * size_;
    lines_.resize((bytes + sizeof(Line) - 1) / sizeof(Line));
    bytes_ = lines_[0].bytes;
    std::memset(bytes_, 0xA5, lines_.size() * sizeof(Line));
    tensor_ = make_tensor(bytes_ + size_t(kGuard) * size_, dtype, rows, columns);
    tensor_.row_stride = stride_;
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  const Tensor& operator*() const { return tensor_; }
  const Tensor* operator->() const { return &tensor_; }
  // The same memory as a vector; one row only.
  Tensor vector() const { return make_tensor(tensor_.data, tensor_.dtype, tensor_.shape[1]); }

  float get(int64_t row, int64_t column) const {
    switch (tensor_.dtype) {
      case DType::f32:
        return tensor_.row<float>(row)[column];
      case DType::f16:
        return to_float(tensor_.row<f16>(row)[column]);
      case DType::bf16:
        return to_float(tensor_.row<bf16>(row)[column]);
      case DType::i32:
        return float(tensor_.row<int32_t>(row)[column]);
    }
    return 0;
  }
  void set(int64_t row, int64_t column, float x) {
    switch (tensor_.dtype) {
      case DType::f32:
        return assign(tensor_.row<float>(row)[column], x);
      case DType::f16:
        return assign(tensor_.row<f16>(row)[column], x);
      case DType::bf16:
        return assign(tensor_.row<bf16>(row)[column], x);
      case DType::i32:
        return assign(tensor_.row<int32_t>(row)[column], x);
    }
  }
  template <class Random>
  Guarded& fill(Random& random, float deviation = 1) {
    std::normal_distribution<float> normal(0, deviation);
    for (int64_t i = 0; i < tensor_.rows(); ++i)
      for (int64_t c = 0; c < tensor_.shape[1]; ++c) set(i, c, normal(random));
    return *this;
  }
  bool intact() const {
    const auto guard = [&](int64_t begin, int64_t end) {
      for (size_t i = size_t(begin) * size_; i < size_t(end) * size_; ++i)
        if (bytes_[i] != std::byte{0xA5}) return false;
      return true;
    };
    bool ok = guard(0, kGuard);
    for (int64_t i = 0; i < tensor_.rows(); ++i)
      ok = ok && guard(kGuard + i * stride_ + tensor_.shape[1], kGuard + (i + 1) * stride_);
    const int64_t end = kGuard + tensor_.rows() * stride_;
    return ok && guard(end, end + kGuard);
  }

 private:
  static constexpr int64_t kGuard = 64;  // elements
  struct alignas(64) Line {              // as aligned as the backend's memory is to a vector load
    std::byte bytes[64];
  };
  std::vector<Line> lines_;
  std::byte* bytes_;
  Tensor tensor_;
  int64_t stride_;
  size_t size_;
};

inline bool close(double got, double want, Tolerance t) {
  return std::abs(got - want) <= t.absolute + t.relative * std::abs(want);  // false for NaN
}

// Largest excess over the tolerance, for one REQUIRE a tensor: 0 where all values pass.
class Worst {
 public:
  explicit Worst(Tolerance t) : tolerance_(t) {}
  void add(double got, double want) {
    const double excess =
        std::abs(got - want) - tolerance_.absolute - tolerance_.relative * std::abs(want);
    if (!(excess <= excess_)) {
      excess_ = excess;
      got_ = got;
      want_ = want;
    }
  }
  bool ok() const {
    if (excess_ <= 0) return true;
    UNSCOPED_INFO("got " << got_ << ", want " << want_);
    return false;
  }

 private:
  Tolerance tolerance_;
  double excess_ = 0, got_ = 0, want_ = 0;
};

inline bool same_bits(const float* a, const float* b, int64_t n) {
  return std::memcmp(a, b, size_t(n) * sizeof(float)) == 0;
}

// Microseconds of processor time of one call on the calling thread, the best of many short rounds:
// on a shared machine most rounds are disturbed, the best one is not. `wall`: elapsed time instead,
// for work on several threads.
template <class F>
double best_us(F&& call, bool wall = false) {
  const auto now = [&] {
    timespec t;
    clock_gettime(wall ? CLOCK_MONOTONIC : CLOCK_THREAD_CPUTIME_ID, &t);
    return double(t.tv_sec) * 1e6 + double(t.tv_nsec) * 1e-3;
  };
  const auto time = [&](int calls) {
    const double begin = now();
    for (int i = 0; i < calls; ++i) call();
    return (now() - begin) / calls;
  };
  double best = std::min(time(1), time(1));
  const int calls = std::max(1, int(500 / best));
  for (const double end = now() + 2e5; now() < end;) best = std::min(best, time(calls));
  return best;
}

}  // namespace kivi::test
