// SPDX-License-Identifier: Apache-2.0
// Tensor is a view of memory that a Buffer, a file mapping or a vector owns. It owns nothing.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "base/verify.h"

namespace kivi {

enum class DType : uint8_t { f32, f16, bf16, i32 };

constexpr size_t size_of(DType t) { return t == DType::f32 || t == DType::i32 ? 4 : 2; }
const char* name_of(DType t);

// Up to 4 dimensions, row major. `row_stride` is the distance between rows of the first dimension
// in elements; the other dimensions are contiguous. A slice of columns is a Tensor with a
// row_stride larger than its row.
struct Tensor {
  void* data = nullptr;
  DType dtype = DType::f32;
  int rank = 0;
  std::array<int64_t, 4> shape = {0, 1, 1, 1};
  int64_t row_stride = 0;

  int64_t rows() const { return shape[0]; }
  int64_t row_size() const { return shape[1] * shape[2] * shape[3]; }
  int64_t size() const { return rows() * row_size(); }
  size_t bytes() const { return size_t(size()) * size_of(dtype); }
  bool contiguous() const { return row_stride == row_size(); }
  bool empty() const { return data == nullptr || size() == 0; }

  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
  template <class T>
  T* row(int64_t i) const {
    return static_cast<T*>(data) + i * row_stride;
  }

  // Returns a view of rows [begin, begin + count).
  Tensor slice_rows(int64_t begin, int64_t count) const;
  // Returns a view of columns [begin, begin + count) of a rank-2 tensor.
  Tensor slice_columns(int64_t begin, int64_t count) const;
};

Tensor make_tensor(void* data, DType dtype, int64_t n);
Tensor make_tensor(void* data, DType dtype, int64_t rows, int64_t columns);

// Returns text such as "[3, 128] f16", for error messages.
std::string describe(const Tensor& t);

}  // namespace kivi
