// SPDX-License-Identifier: Apache-2.0
#include "kernels/operand.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/kv_codec.h"

namespace kivi {

std::optional<Operand> quantized_in(const Tensor& rows) {
  constexpr int64_t kAlignment = 256;  // bytes, of Backend::allocate
  const int64_t codes = (rows.size() + kAlignment - 1) / kAlignment * kAlignment;
  const int64_t scales = rows.rows() * int64_t(sizeof(float));
  if (rows.rank != 2 || !rows.contiguous() || codes + scales > int64_t(rows.bytes())) return {};
  Operand operand(rows);
  operand.rows.data = nullptr;
  operand.codes = rows.as<uint8_t>();
  operand.scales = reinterpret_cast<float*>(operand.codes + codes);
  return operand;
}

void quantize_e4m3_row(std::span<const float> x, uint8_t* codes, float& scale) {
  constexpr float kMost = 448, kSmallest = 1e-30f;
  float most = 0;
  bool finite = true;
  for (const float v : x) {
    most = std::max(most, std::abs(v));
    finite = finite && std::isfinite(v);
  }
  if (most < kSmallest) most = 0;
  const float inverse = most > 0 ? kMost / most : 0.0f;
  for (size_t i = 0; i < x.size(); ++i) codes[i] = to_e4m3(x[i] * inverse);
  scale = finite ? most / kMost : std::numeric_limits<float>::quiet_NaN();
}

}  // namespace kivi
