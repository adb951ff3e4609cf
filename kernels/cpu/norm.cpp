// add_norm: x += delta; out = norm(x) * weight (+ bias).
#include <cmath>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/half.h"

namespace kivi {
namespace {

float at(const Tensor& t, int64_t i) {
  switch (t.dtype) {
    case DType::f16:
      return to_float(t.as<f16>()[i]);
    case DType::bf16:
      return to_float(t.as<bf16>()[i]);
    default:
      return t.as<float>()[i];
  }
}

}  // namespace

void CpuBackend::do_add_norm(const Tensor& x, const Tensor& delta, const Tensor& weight,
                             const Tensor& bias, NormKind kind, float eps, const Tensor& out) {
  const int64_t n = x.shape[1];
  pool_.parallel_for(x.rows(), x.size() * 4, [&](int64_t i, int) {
    float* row = x.row<float>(i);
    if (!delta.empty()) {
      const float* d = delta.row<float>(i);
      for (int64_t c = 0; c < n; ++c) row[c] += d[c];
    }
    float mean = 0;
    if (kind == NormKind::layer) {
      for (int64_t c = 0; c < n; ++c) mean += row[c];
      mean /= float(n);
    }
    float square = 0;
    for (int64_t c = 0; c < n; ++c) square += (row[c] - mean) * (row[c] - mean);
    const float factor = 1.0f / std::sqrt(square / float(n) + eps);
    float* to = out.row<float>(i);
    for (int64_t c = 0; c < n; ++c)
      to[c] = (row[c] - mean) * factor * at(weight, c) + (bias.empty() ? 0.0f : at(bias, c));
  });
}

}  // namespace kivi
