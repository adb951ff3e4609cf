// rope: splits q|k|v, turns q and k, narrows k and v to f16.
//   x'[i] = x[i] cos a - x[i + h] sin a;  x'[i + h] = x[i + h] cos a + x[i] sin a;
//   a = position * inverse_frequency[i], h = rotary_dim / 2.
#include <cmath>
#include <cstring>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/half.h"

namespace kivi {
namespace {

// Turns one head in place. turn: cosines of the row's position, then sines.
void rotate(float* head, const float* turn, int half) {
  for (int i = 0; i < half; ++i) {
    const float a = head[i], b = head[i + half], c = turn[i], s = turn[half + i];
    head[i] = a * c - b * s;
    head[i + half] = b * c + a * s;
  }
}

}  // namespace

void CpuBackend::do_rope(const Tensor& qkv, const Tensor& positions, const Rope& rope,
                         const KvShape& shape, const Tensor& q, const Tensor& kv) {
  const int half = rope.rotary_dim / 2, d = shape.head_dim;
  const int64_t q_columns = q.shape[1], k_columns = int64_t(shape.heads) * d;
  pool_.parallel_for(qkv.rows(), qkv.size() * 4, [&](int64_t row, int) {
    std::vector<float> turn(static_cast<size_t>(2 * half)), head(static_cast<size_t>(d));
    for (int i = 0; i < half; ++i) {
      const float angle =
          float(positions.as<int32_t>()[row]) * rope.inverse_frequencies.as<float>()[i];
      turn[size_t(i)] = std::cos(angle) * rope.attention_factor;
      turn[size_t(half + i)] = std::sin(angle) * rope.attention_factor;
    }
    const float* from = qkv.row<float>(row);
    float* to = q.row<float>(row);
    std::memcpy(to, from, size_t(q_columns) * sizeof(float));
    for (int64_t c = 0; c < q_columns; c += d) rotate(to + c, turn.data(), half);
    f16* narrow = kv.row<f16>(row);
    for (int64_t c = 0; c < 2 * k_columns; c += d) {
      std::memcpy(head.data(), from + q_columns + c, size_t(d) * sizeof(float));
      if (c < k_columns) rotate(head.data(), turn.data(), half);
      for (int i = 0; i < d; ++i) narrow[c + i] = to_f16_saturated(head[size_t(i)]);
    }
  });
}

}  // namespace kivi
