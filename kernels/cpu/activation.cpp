// gated_activation, activate: out = act(gate) * up, x = act(x).
//   silu(x) = x / (1 + exp(-x));  gelu(x) = x (1 + erf(x / sqrt 2)) / 2;
//   gelu_tanh(x) = x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2  (Hendrycks and Gimpel 2016)
#include <cmath>

#include "kernels/cpu/cpu_backend.h"

namespace kivi {
namespace {

float act(float x, Activation a) {
  switch (a) {
    case Activation::silu:
      return x / (1.0f + std::exp(-x));
    case Activation::gelu:
      return 0.5f * x * (1.0f + std::erf(x * 0.70710678118654752f));
    case Activation::gelu_tanh:
      return 0.5f * x * (1.0f + std::tanh(0.79788456080286536f * (x + 0.044715f * x * x * x)));
  }
  return x;
}

}  // namespace

void CpuBackend::do_gated_activation(const Tensor& gate_up, Activation activation,
                                     const Tensor& out) {
  const int64_t f = out.shape[1];
  pool_.parallel_for(out.rows(), out.size() * 32, [&](int64_t i, int) {
    const float* gate = gate_up.row<float>(i);
    float* to = out.row<float>(i);
    for (int64_t c = 0; c < f; ++c) to[c] = act(gate[c], activation) * gate[f + c];
  });
}

void CpuBackend::do_activate(const Tensor& x, Activation activation) {
  pool_.parallel_for(x.rows(), x.size() * 32, [&](int64_t i, int) {
    float* row = x.row<float>(i);
    for (int64_t c = 0; c < x.shape[1]; ++c) row[c] = act(row[c], activation);
  });
}

}  // namespace kivi
