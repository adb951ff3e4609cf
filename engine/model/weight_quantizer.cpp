// SPDX-License-Identifier: Apache-2.0
#include "engine/model/weight_quantizer.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/verify.h"
#include "kernels/kv_codec.h"
#include "kernels/weight_codec.h"

namespace kivi {

namespace {

constexpr float kE4m3Max = 448;
constexpr int kInt4Max = 15;
constexpr int kClips = 16;          // factors that are tried
constexpr float kClipStep = 0.03f;  // between two of them

struct Levels {
  float scale = 0;
  int zero = 0;
};

Levels levels_between(float low, float high) {
  if (!(high > low)) return {};
  const float scale = (high - low) / float(kInt4Max);
  return {scale, int(std::lround(-low / scale))};
}

uint8_t code_of(float x, const Levels& levels) {
  if (levels.scale == 0) return uint8_t(levels.zero);
  const float code = std::nearbyint(x / levels.scale) + float(levels.zero);
  return uint8_t(std::clamp(code, 0.0f, float(kInt4Max)));
}

double squared_error(std::span<const float> group, const Levels& levels) {
  double sum = 0;
  for (const float x : group) {
    const float error = levels.scale * float(int(code_of(x, levels)) - levels.zero) - x;
    sum += double(error) * double(error);
  }
  return sum;
}

// Zero is among the numbers between the ends, so that its code is a whole number in [0, 15].
Levels best_levels(std::span<const float> group) {
  const auto [least, most] = std::minmax_element(group.begin(), group.end());
  const float low = std::min(*least, 0.0f), high = std::max(*most, 0.0f);
  Levels best = levels_between(low, high);
  double best_error = squared_error(group, best);
  for (int i = 1; i < kClips; ++i) {
    const float factor = 1 - kClipStep * float(i);
    const Levels levels = levels_between(low * factor, high * factor);
    const double error = squared_error(group, levels);
    if (error < best_error) {
      best = levels;
      best_error = error;
    }
  }
  return best;
}

void put(std::byte* at, float x) { std::memcpy(at, &x, sizeof(x)); }

}  // namespace

void quantize_row(const WeightFormat& format, std::span<const float> numbers,
                  std::span<uint8_t> codes, std::span<std::byte> records) {
  if (format.kind == WeightKind::e4m3) {
    float most = 0;
    for (const float x : numbers) most = std::max(most, std::abs(x));
    const float scale = most / kE4m3Max;
    put(records.data(), scale);
    for (size_t i = 0; i < numbers.size(); ++i)
      codes[i] = scale == 0 ? uint8_t(0) : to_e4m3(numbers[i] / scale);
    return;
  }
  KIVI_VERIFY(format.kind == WeightKind::int4);
  const auto columns = int64_t(numbers.size()), unit = unit_columns(format, columns);
  std::byte* record = records.data();
  for (int64_t c = 0; c < columns; c += unit) {
    const auto group = numbers.subspan(size_t(c), size_t(std::min(unit, columns - c)));
    const Levels levels = best_levels(group);
    put(record, levels.scale);
    record[4] = std::byte(levels.zero);
    for (size_t i = 0; i < group.size(); ++i) codes[size_t(c) + i] = code_of(group[i], levels);
    record += layout_of(format.kind).record_bytes;
  }
}

}  // namespace kivi
