// SPDX-License-Identifier: Apache-2.0
#include "study/kv_quantizer.h"

#include <fmt/format.h>

#include <cmath>

#include "base/verify.h"
#include "kernels/kv_codec.h"

namespace kivi {

namespace {

// x[0], x[stride], ... (count of them) are one group.
void simulate_group(f16* x, int64_t stride, int count, int bits, std::vector<f16>& group,
                    std::vector<uint8_t>& codes) {
  group.resize(size_t(count));
  codes.resize(size_t(count));
  for (int i = 0; i < count; ++i) group[size_t(i)] = x[i * stride];
  const GroupParameters parameters = quantize_group(group, bits, 16, codes);
  for (int i = 0; i < count; ++i)
    x[i * stride] = to_f16_saturated(dequantize(codes[size_t(i)], parameters));
}

}  // namespace

std::string name_of(const KvQuantizer& q) {
  if (q.bits > 4) return fmt::format("{}", q.bits);
  return fmt::format("{}{}", q.bits, q.axis == KvAxis::channel ? "C" : "T");
}

std::string name_of(const KvSimulation& s) {
  return fmt::format("K{} V{}", name_of(s.key), name_of(s.value));
}

KvRows simulated(const KvRows& rows, const KvQuantizer& q) {
  KvRows out = rows;
  if (q.bits == 16) return out;
  if (q.bits == 8) {
    for (f16& x : out.data) x = to_f16(from_e4m3(to_e4m3(to_float(x))));
    return out;
  }
  std::vector<f16> group;
  std::vector<uint8_t> codes;
  const int64_t columns = rows.columns();
  if (q.axis == KvAxis::token) {
    KIVI_VERIFY(rows.head_dim % q.group == 0);
    for (int64_t begin = 0; begin < int64_t(out.data.size()); begin += q.group)
      simulate_group(&out.data[size_t(begin)], 1, q.group, q.bits, group, codes);
  } else {
    for (int64_t token = 0; token + q.group <= rows.tokens; token += q.group)
      for (int64_t column = 0; column < columns; ++column)
        simulate_group(&out.data[size_t(token * columns + column)], columns, q.group, q.bits, group,
                       codes);
  }
  return out;
}

double relative_error(const KvRows& a, const KvRows& b, int head) {
  KIVI_VERIFY(a.data.size() == b.data.size());
  double difference = 0, norm = 0;
  for (int token = 0; token < b.tokens; ++token) {
    const size_t begin = size_t(token) * size_t(b.columns()) + size_t(head) * size_t(b.head_dim);
    for (size_t i = begin; i < begin + size_t(b.head_dim); ++i) {
      const double y = to_float(b.data[i]), e = double(to_float(a.data[i])) - y;
      difference += e * e;
      norm += y * y;
    }
  }
  return norm == 0 ? std::sqrt(difference) : std::sqrt(difference / norm);
}

}  // namespace kivi
