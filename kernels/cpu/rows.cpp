// SPDX-License-Identifier: Apache-2.0
// embed, gather_rows, add, add_rows: ops that move rows. Cost: the bytes of the rows, read and
// written. Reference: the formulas in kernels/backend.h. Test: tests/kernels/rows_test.cpp.
#include <algorithm>
#include <cstring>
#include <span>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/half.h"

namespace kivi {
namespace {

template <class T>
void widen(const T* from, int64_t n, float* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = to_float(from[i]);
}

}  // namespace

void CpuBackend::do_embed(const Tensor& table, const Tensor& ids, const Tensor& out) {
  const int64_t n = out.shape[1];
  pool_.parallel_for(out.rows(), out.size(), [&](int64_t i, int) {
    const int32_t id = ids.as<int32_t>()[i];
    KIVI_VERIFY(id >= 0 && id < table.rows());
    float* row = out.row<float>(i);
    switch (table.dtype) {
      case DType::f32:
        std::memcpy(row, table.row<float>(id), size_t(n) * sizeof(float));
        break;
      case DType::f16:
        widen(table.row<f16>(id), n, row);
        break;
      default:
        widen(table.row<bf16>(id), n, row);
    }
  });
}

void CpuBackend::do_resolve_ids(const Tensor& ids, const Tensor& sampled) {
  for (int32_t& id : std::span(ids.as<int32_t>(), size_t(ids.rows()))) {
    if (id >= 0) continue;
    KIVI_VERIFY(-1 - id < sampled.rows());
    id = sampled.as<int32_t>()[-1 - id];
  }
}

void CpuBackend::do_gather_rows(const Tensor& x, const Tensor& rows, const Tensor& out) {
  const size_t row_bytes = size_t(out.shape[1]) * sizeof(float);
  for (int64_t i = 0; i < out.rows(); ++i) {
    const int32_t row = rows.as<int32_t>()[i];
    KIVI_VERIFY(row >= 0 && row < x.rows());
    std::memcpy(out.row<float>(i), x.row<float>(row), row_bytes);
  }
}

void CpuBackend::do_add_rows(const Tensor& x, const Tensor& sums) {
  constexpr int64_t kColumns = 64;  // of a task
  const int64_t n = x.shape[1];
  float* sum = sums.as<float>();
  pool_.parallel_for((n + kColumns - 1) / kColumns, x.size(), [&](int64_t task, int) {
    const int64_t end = std::min(n, (task + 1) * kColumns);
    for (int64_t i = 0; i < x.rows(); ++i) {
      const float* row = x.row<float>(i);
      for (int64_t c = task * kColumns; c < end; ++c) sum[c] += row[c];
    }
  });
}

void CpuBackend::do_add(const Tensor& x, const Tensor& delta) {
  const int64_t n = x.shape[1];
  pool_.parallel_for(x.rows(), x.size(), [&](int64_t i, int) {
    float* to = x.row<float>(i);
    const float* from = delta.row<float>(i);
    for (int64_t c = 0; c < n; ++c) to[c] += from[c];
  });
}

}  // namespace kivi
