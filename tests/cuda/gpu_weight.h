// SPDX-License-Identifier: Apache-2.0
// A quantized matrix on the GPU beside the numbers that its codes stand for.
#pragma once

#include <list>

#include "tests/cuda/pair.h"
#include "tests/kernels/quantized.h"

namespace kivi::test {

// A matrix on the GPU, and its numbers in f32.
class GpuWeight {
 public:
  explicit GpuWeight(const QuantizedRows& rows) : weight(host_.emplace_back(rows).weight) {
    numbers_.resize(size_t(rows.rows * rows.columns), 0.f);
    for (int64_t i = 0; i < rows.rows; ++i)
      dequantize_row(rows.format, rows.row(i),
                     {numbers_.data() + i * rows.columns, size_t(rows.columns)});
    weight.codes = send(weight.codes, weight_codes_bytes(rows.format, rows.rows, rows.columns));
    weight.scales = send(weight.scales, weight_scales_bytes(rows.format, rows.rows, rows.columns));
  }

  // W [n, k] f32, its columns in x's order and after the Hadamard matrix; rounded to `type`.
  Tensor numbers(DType type = DType::f32) {
    rounded_.clear();
    for (const float x : numbers_) rounded_.push_back(rounded(x, type));
    return make_tensor(rounded_.data(), DType::f32, weight.rows, weight.columns);
  }

 private:
  const std::byte* send(const std::byte* data, int64_t bytes) {
    auto buffer = gpu().allocate(size_t(bytes), "test");
    REQUIRE(buffer.ok());
    buffers_.push_back(std::move(buffer).value());
    gpu().upload(buffers_.back().data(), data, size_t(bytes));
    return buffers_.back().data();
  }
  std::list<QuantizedMatrix> host_;
  std::vector<Buffer> buffers_;
  std::vector<float> numbers_, rounded_;

 public:
  Weight weight;
};

// Gives the backend the scratch that products of `rows` rows by `w` need.
inline void give_scratch(const Weight& w, int64_t rows) {
  static Buffer scratch;
  const int64_t bytes = gpu().product_scratch_bytes(w, rows);
  if (bytes <= int64_t(scratch.bytes())) return;
  gpu().synchronize();
  auto buffer = gpu().allocate(size_t(bytes), "test");
  REQUIRE(buffer.ok());
  scratch = std::move(buffer).value();
  gpu().use_product_scratch(scratch.data(), bytes);
}

}  // namespace kivi::test
