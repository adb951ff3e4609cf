// matmul: out = x W^T (+ bias).
#include "kernels/cpu/cpu_backend.h"
#include "kernels/half.h"

namespace kivi {
namespace {

float widen(float x) { return x; }
float widen(f16 x) { return to_float(x); }
float widen(bf16 x) { return to_float(x); }

template <class W>
void multiply(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& out, int64_t j,
              std::vector<float>& row) {
  const int64_t k = x.shape[1];
  for (int64_t c = 0; c < k; ++c) row[size_t(c)] = widen(w.row<W>(j)[c]);
  const float b = bias.empty() ? 0.0f : widen(bias.as<W>()[j]);
  for (int64_t i = 0; i < x.rows(); ++i) {
    float sum[8] = {};
    const float* xi = x.row<float>(i);
    int64_t c = 0;
    for (; c + 8 <= k; c += 8)
      for (int l = 0; l < 8; ++l) sum[l] += xi[c + l] * row[size_t(c + l)];
    for (int l = 0; c < k; ++c, ++l) sum[l] += xi[c] * row[size_t(c)];
    out.row<float>(i)[j] =
        ((sum[0] + sum[4]) + (sum[1] + sum[5])) + ((sum[2] + sum[6]) + (sum[3] + sum[7])) + b;
  }
}

}  // namespace

void CpuBackend::do_matmul(const Tensor& x, const Tensor& w, const Tensor& bias,
                           const Tensor& out) {
  const int64_t n = w.rows(), tasks = (n + 31) / 32;
  pool_.parallel_for(tasks, x.size() * n, [&](int64_t task, int) {
    std::vector<float> row(static_cast<size_t>(x.shape[1]));
    for (int64_t j = task * 32; j < std::min(n, task * 32 + 32); ++j) {
      if (w.dtype == DType::f32) multiply<float>(x, w, bias, out, j, row);
      if (w.dtype == DType::f16) multiply<f16>(x, w, bias, out, j, row);
      if (w.dtype == DType::bf16) multiply<bf16>(x, w, bias, out, j, row);
    }
  });
}

}  // namespace kivi
