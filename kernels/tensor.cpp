// SPDX-License-Identifier: Apache-2.0
#include "kernels/tensor.h"

namespace kivi {

const char* name_of(DType t) {
  switch (t) {
    case DType::f32:
      return "f32";
    case DType::f16:
      return "f16";
    case DType::bf16:
      return "bf16";
    case DType::i32:
      return "i32";
  }
  return "?";
}

Tensor Tensor::slice_rows(int64_t begin, int64_t count) const {
  KIVI_VERIFY(begin >= 0 && count >= 0 && begin + count <= rows());
  Tensor t = *this;
  t.data = static_cast<std::byte*>(data) + size_t(begin * row_stride) * size_of(dtype);
  t.shape[0] = count;
  return t;
}

Tensor Tensor::slice_columns(int64_t begin, int64_t count) const {
  KIVI_VERIFY(rank == 2 && begin >= 0 && count >= 0 && begin + count <= shape[1]);
  Tensor t = *this;
  t.data = static_cast<std::byte*>(data) + size_t(begin) * size_of(dtype);
  t.shape[1] = count;
  return t;
}

Tensor make_tensor(void* data, DType dtype, int64_t n) { return {data, dtype, 1, {n, 1, 1, 1}, 1}; }

Tensor make_tensor(void* data, DType dtype, int64_t rows, int64_t columns) {
  return {data, dtype, 2, {rows, columns, 1, 1}, columns};
}

std::string describe(const Tensor& t) {
  std::string s = "[";
  for (int i = 0; i < t.rank; ++i) s += (i ? ", " : "") + std::to_string(t.shape[size_t(i)]);
  return s + "] " + name_of(t.dtype);
}

}  // namespace kivi
