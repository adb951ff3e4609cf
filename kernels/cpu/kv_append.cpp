// SPDX-License-Identifier: Apache-2.0
// kv_append: stores a step's keys and values.
//
// The tokens of a sequence are appended one after the other. So the store after T tokens is a
// function of these tokens alone, however they were divided into steps
// (docs/design/kv-format.md, section 2). The first S tokens become sinks. With paged positions
// (kv_page.h), appending p moves the value of p - R from the residual to its page and writes p into
// the freed row. If p + 1 is a multiple of R, the R keys of the residual become page codes.
//
// kv [t, 2 hk d] f16. Cost: for each token and head 4 d bytes copied, and 2 d numbers quantized:
// the token's own or those that make room for it. Codes, scales and minima have the bits of
// kernels/kv_codec.h.
//
// Reference: kernels/kv_codec.cpp, tests/kernels/kivi_reference.h. Test:
// tests/kernels/store_test.cpp.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/kv_append.cpp"
#include "kernels/cpu/simd_targets.h"
// clang-format off
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
// clang-format on

#include <cstring>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/kv_source.h"
#include "kernels/cpu/kv_tile-inl.h"
#include "kernels/kv_codec.h"

HWY_BEFORE_NAMESPACE();
namespace kivi {
namespace HWY_NAMESPACE {

using V8 = hn::Vec<D8>;

// f16 as the writer of a group sees it: NaN -> 0, infinities -> +-65504.
HWY_INLINE V8 finite_8(V8x16 bits) { return saturate_f16(D8(), widen_8(bits)); }

// Rounded to f16, which saturates: one operation of fp16 arithmetic (kv_codec.cpp, round_f16).
HWY_INLINE V8 round_f16(V8 x) {
  const hn::FixedTag<hwy::float16_t, 8> dh;
  const V8 limit = hn::Set(D8(), kF16Max);
  return hn::PromoteTo(D8(), hn::DemoteTo(dh, hn::Clamp(x, hn::Neg(limit), limit)));
}

// The quantizer of kv_codec.h on eight groups side by side, or on eight lanes of one group.
struct Quantizer {
  V8 low, scale;
  V8 largest;  // 2^bits - 1

  // From minimum and maximum. Zeros are +0.
  HWY_INLINE Quantizer(V8 min, V8 max, int bits, int parameter_bits)
      : low(hn::Add(min, hn::Zero(D8()))), largest(hn::Set(D8(), float((1 << bits) - 1))) {
    const V8 high = hn::Add(max, hn::Zero(D8()));
    if (parameter_bits == 16) {
      scale = round_f16(hn::Div(round_f16(hn::Sub(high, low)), largest));
      return;
    }
    HWY_ALIGN float lows[8], highs[8];  // eight groups of 32 or more numbers: no hot place
    hn::Store(low, D8(), lows);
    hn::Store(high, D8(), highs);
    HWY_ALIGN float scales[8], minima[8];
    for (int i = 0; i < 8; ++i) {
      const GroupParameters p = group_parameters(lows[i], highs[i], bits, parameter_bits);
      scales[i] = to_float(p.scale);
      minima[i] = to_float(p.minimum);
    }
    scale = hn::Load(D8(), scales);
    low = hn::Load(D8(), minima);
  }
  // Codes in 16 bits each.
  HWY_INLINE V8x16 codes(V8 x) const {
    const D8 df;
    const V8 q = hn::Round(round_f16(hn::Div(round_f16(hn::Sub(x, low)), scale)));
    const V8 clamped = hn::Clamp(q, hn::Zero(df), largest);
    // A constant group (0 / 0 above) has codes 0.
    const V8 kept = hn::IfThenZeroElse(hn::Eq(scale, hn::Zero(df)), clamped);
    return hn::DemoteTo(D8x16(), hn::ConvertTo(hn::FixedTag<int32_t, 8>(), kept));
  }
};

// e4m3 of eight numbers (kv_codec.cpp, to_e4m3), in 16 bits each.
HWY_INLINE V8x16 to_e4m3_8(V8 x) {
  const D8 df;
  const hn::FixedTag<int32_t, 8> di;
  const V8 a = hn::Min(hn::Abs(x), hn::Set(df, 448.0f));
  const auto bits = hn::BitCast(di, a);
  // Normal: round the mantissa to 3 bits, to nearest even, and move the exponent's bias from 127
  // to 7.
  const auto odd = hn::And(hn::ShiftRight<20>(bits), hn::Set(di, 1));
  const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(di, 0x7ffff)));
  const auto normal = hn::Sub(hn::ShiftRight<20>(rounded), hn::Set(di, (127 - 7) << 3));
  // Subnormal: steps of 2^-9; 8 of them are the smallest normal.
  const auto steps = hn::NearestInt(hn::Mul(a, hn::Set(df, 512.0f)));
  const auto small = hn::RebindMask(di, hn::Lt(a, hn::Set(df, 0.015625f)));
  const auto sign = hn::And(hn::ShiftRight<24>(hn::BitCast(di, x)), hn::Set(di, 0x80));
  return hn::DemoteTo(D8x16(), hn::Or(hn::IfThenElse(small, steps, normal), sign));
}

// Writes the codes of one token's keys: codes [d], 16 bits each. A token fills its words alone.
HWY_INLINE void write_key_row(const KvLayout& l, std::byte* block, int token,
                              const uint16_t* codes) {
  const D4x32 d32;
  auto* words = reinterpret_cast<uint32_t*>(block + l.key_codes_offset());
  const int bits = l.format.key_bits, d = l.shape.head_dim;
  const int slots = 16 / bits, row_words = l.key_words_per_row();
  for (int j = 0; j < row_words; ++j) {
    V4x32 word = hn::Zero(d32);  // lanes t = 0..3 of row token % 8
    for (int slot = 0; slot < slots && (j * slots + slot) * 8 < d; ++slot) {
      V4x32 pairs = hn::BitCast(d32, hn::Load(D8x16(), codes + (j * slots + slot) * 8));
      if (bits == 8)
        pairs = hn::And(hn::Or(pairs, hn::ShiftRight<8>(pairs)), hn::Set(d32, 0xffffu));
      word = hn::Or(word, hn::ShiftLeftSame(pairs, slot * (bits == 8 ? 16 : bits)));
    }
    HWY_ALIGN uint32_t lanes[4];
    hn::Store(word, d32, lanes);
    const int i = token / 16 * 2 * row_words + j * 2 + token % 16 / 8;
    for (int t = 0; t < 4; ++t) words[lane_word(i, token % 8 * 4 + t)] = lanes[t];
  }
}

// Writes the codes of one token's values: codes [d], 16 bits each. They share their words with
// other tokens.
HWY_INLINE void write_value_row(const KvLayout& l, std::byte* block, int token,
                                const uint16_t* codes) {
  auto* words = reinterpret_cast<uint32_t*>(block + l.value_codes_offset());
  const int bits = l.format.value_bits;
  for (int c = 0; c < l.shape.head_dim; c += 8) {
    // Channels c + 1, ... c + 7 are rows g of the same words: four lanes, 16 words, further on.
    const CodePosition p = l.value_code(token, c);
    const uint32_t mask = ((1u << bits) - 1) << p.bit;
    uint32_t* word = words + p.word;
    for (int g = 0; g < 8; ++g)
      word[16 * g] = (word[16 * g] & ~mask) | (uint32_t(codes[c + g]) << p.bit);
  }
}

// One (sequence, KV head) of a step.
class Appender {
 public:
  explicit Appender(const KvSource& source)
      : source_(source), layout_(source.store.layout), d_(source.head_dim()) {}

  void run() const {
    const StepSequence& s = source_.sequence;
    const int end = s.past + s.row_count;
    for (int token = s.mode == KvMode::seal ? 0 : s.past; token < end; ++token)
      if (s.mode == KvMode::stage)
        arrive(token, KvMode::stage);
      else
        append(token);
    if (s.mode == KvMode::stage) return;
    for (int position = values_paged(layout_.format, end); position < s.values_to; ++position)
      quantize_value(position, source_.row(arrival_place(layout_, KvMode::append,
                                                         position + layout_.format.sinks),
                                           Side::value));
  }

 private:
  // A token of this step, or of the staging area before it.
  F16Row row_of(int token, Side side) const {
    return source_.row(read_place(layout_, source_.sequence, token, side), side);
  }

  // Puts the token's rows where they land first.
  void arrive(int token, KvMode mode) const {
    const KvPlace place = arrival_place(layout_, mode, token);
    for (const Side side : {Side::key, Side::value})
      copy(row_of(token, side), source_.rows(place, side), place.row);
  }

  // Into row `row` of swizzled rows.
  void copy(const F16Row& from, std::byte* rows, int row) const {
    f16* to = reinterpret_cast<f16*>(rows) + int64_t(row) * d_;
    for (int c = 0; c < d_; c += 8)
      hn::StoreU(chunk_of(from, c, d_), D8x16(), &to[swizzled_channel(row, c, d_)].bits);
  }

  void append(int token) const {
    const KvFormat& f = layout_.format;
    const KvPlace place = arrival_place(layout_, KvMode::append, token);
    if (place.region == KvRegion::codes) {  // f8
      HWY_ALIGN uint16_t codes[kHeadDimMax];
      narrow_f8(row_of(token, Side::key), codes);
      write_key_row(layout_, source_.page(place.page), place.row, codes);
      narrow_f8(row_of(token, Side::value), codes);
      write_value_row(layout_, source_.page(place.page), place.row, codes);
      return;
    }
    const int position = token - f.sinks;
    if (place.region == KvRegion::residual && position >= f.residual)
      quantize_value(position - f.residual, source_.row(place, Side::value));
    arrive(token, KvMode::append);
    if (place.region == KvRegion::residual && place.row == f.residual - 1)
      for (int first = position + 1 - f.residual; first <= position; first += f.group)
        quantize_keys(first);
  }

  void narrow_f8(const F16Row& row, uint16_t* codes) const {
    for (int c = 0; c < d_; c += 8)
      hn::Store(to_e4m3_8(finite_8(chunk_of(row, c, d_))), D8x16(), codes + c);
  }

  // The value of a paged position, from its row. Not if its page has it already: then others may
  // read that page.
  void quantize_value(int position, const F16Row& row) const {
    if (position < source_.sequence.values_from) return;
    HWY_ALIGN uint16_t codes[kHeadDimMax];
    std::byte* block = source_.page(position / layout_.page_tokens());
    const int t = position % layout_.page_tokens(), group = layout_.format.group;
    for (int begin = 0; begin < d_; begin += group) {
      V8 min = finite_8(chunk_of(row, begin, d_)), max = min;
      for (int c = begin + 8; c < begin + group; c += 8) {
        const V8 x = finite_8(chunk_of(row, c, d_));
        min = hn::Min(min, x);
        max = hn::Max(max, x);
      }
      const Quantizer quantizer(hn::MinOfLanes(D8(), min), hn::MaxOfLanes(D8(), max),
                                layout_.format.value_bits, layout_.format.parameter_bits);
      for (int c = begin; c < begin + group; c += 8)
        hn::Store(quantizer.codes(finite_8(chunk_of(row, c, d_))), D8x16(), codes + c);
      f16 scale[8], minimum[8];
      store_f16(D8(), quantizer.scale, scale);
      store_f16(D8(), quantizer.low, minimum);
      write_value_parameters(layout_, block, t, begin, {scale[0], minimum[0]});
    }
    write_value_row(layout_, block, t, codes);
  }

  // One group of all channels, from the paged position `first` on, from the residual.
  void quantize_keys(int first) const {
    HWY_ALIGN uint16_t codes[128 * kHeadDimMax];  // [G][d]
    std::byte* block = source_.page(first / layout_.page_tokens());
    const int t = first % layout_.page_tokens(), group = layout_.format.group;
    const auto key = [&](int i, int c) HWY_ATTR {
      const KvPlace place{KvRegion::residual, 0, (first + i) % layout_.format.residual};
      return finite_8(chunk_of(source_.row(place, Side::key), c, d_));
    };
    for (int c = 0; c < d_; c += 8) {
      V8 min = key(0, c), max = min;
      for (int i = 1; i < group; ++i) {
        const V8 x = key(i, c);
        min = hn::Min(min, x);
        max = hn::Max(max, x);
      }
      const Quantizer quantizer(min, max, layout_.format.key_bits, layout_.format.parameter_bits);
      for (int i = 0; i < group; ++i)
        hn::Store(quantizer.codes(key(i, c)), D8x16(), codes + i * d_ + c);
      f16 scale[8], minimum[8];
      store_f16(D8(), quantizer.scale, scale);
      store_f16(D8(), quantizer.low, minimum);
      for (int i = 0; i < 8; ++i)
        write_key_parameters(layout_, block, t, c + i, {scale[i], minimum[i]});
    }
    for (int i = 0; i < group; ++i) write_key_row(layout_, block, t + i, codes + i * d_);
  }

  const KvSource& source_;
  const KvLayout& layout_;
  const int d_;
};

void AppendHead(const KvSource& source) { Appender(source).run(); }

}  // namespace HWY_NAMESPACE
}  // namespace kivi
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kivi {
HWY_EXPORT(AppendHead);

void CpuBackend::do_kv_append(const Tensor& kv, const KvView& store, const StepView& step,
                              int layer, int layers) {
  const int heads = store.layout.shape.heads;
  const int64_t of_layer = int64_t(step.sequences.size()) * heads;
  pool_.parallel_for(layers * of_layer, kv.size() * 4, [&](int64_t task, int) {
    const int64_t i = task / of_layer, rest = task % of_layer;
    const Tensor own = kv.slice_rows(i * step.rows, step.rows);
    HWY_DYNAMIC_DISPATCH(AppendHead)
    ({own, store, step, step.sequences[size_t(rest / heads)], layer + int(i), int(rest % heads)});
  });
}

}  // namespace kivi
#endif
