// SPDX-License-Identifier: Apache-2.0
// kv_attend: out = softmax(q K^T * scale) V, causal, over a sequence's history and its own tokens.
//
// q [t, hq d] f32, kv [t, 2 hk d] f16, out [t, hq d] f32. Cost: 4 d operations for each pair of a
// query and a token it sees; each tile of the history is read and dequantized once for a block of
// up to 64 queries, which are the rows and the query heads of one KV head.
//
// Tokens are taken in tiles of 64 paged positions (kv_tile-inl.h), tiles in segments of 1,024. A
// query's softmax state runs over the tiles of a segment in ascending order; the states of its
// segments are merged in ascending order. All sums of one query run in an order that depends on
// positions alone (a score adds up its channels one by one, an output its tokens one by one, and
// what a mask hides adds an exact zero). So where the numbers are the same, as they are for f16
// pages, staging and own tokens, the result is the same bit for bit: in one chunk or in many, alone
// or in a batch, on any number of threads. Segments let several threads share one long sequence.
//
// Reference: dense attention in fp64. Test: tests/kernels/attend_test.cpp.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/kv_attend.cpp"
#include "kernels/cpu/simd_targets.h"
// clang-format off
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
// clang-format on

#include <algorithm>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/kv_tile-inl.h"
#include "kernels/cpu/softmax_state-inl.h"

#ifndef KIVI_KV_ATTEND_TASK_
#define KIVI_KV_ATTEND_TASK_
namespace kivi {

inline constexpr int kBlockQueries = 64;
inline constexpr int kSegmentTokens = 1024;

// A block of queries of one (sequence, KV head) over the tokens of one segment. Query m is head
// m % group of row m / group.
struct AttendTask {
  KvSource source;
  int query_begin;
  int query_count;
  int segment;         // places [segment, segment + 1) * kSegmentTokens
  float* partial;      // [query_count][d + 2] states (out, max, sum); null: the only segment
  int partial_stride;  // floats between the partials of one block's segments
};

struct AttendArguments {
  const Tensor& q;
  const Tensor& out;
  int group;  // query heads a KV head
  int window;
  float scale;
};

// The *place* of a token is its position plus this. Tiles begin at places that are multiples of 64;
// these are the paged positions that are such multiples.
inline int place_shift(const KvFormat& f) { return (64 - f.sinks % 64) % 64; }

}  // namespace kivi
#endif

HWY_BEFORE_NAMESPACE();
namespace kivi {
namespace HWY_NAMESPACE {

using DF = hn::CappedTag<float, 16>;
constexpr int kLanes = int(hn::MaxLanes(DF()));

// c[i][0 .. Vectors * L) += sum over j in [begin, end) of a[i][j] * b[j][...], j ascending.
template <int Rows, int Vectors>
HWY_INLINE void add_products(const float* const* a, int begin, int end, const float* b,
                             int b_stride, float* const* c) {
  const DF df;
  hn::Vec<DF> sum[Rows][Vectors];
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) sum[i][v] = hn::LoadU(df, c[i] + v * kLanes);
  for (int j = begin; j < end; ++j) {
    hn::Vec<DF> bv[Vectors];
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) bv[v] = hn::LoadU(df, b + j * b_stride + v * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) {
      const auto av = hn::Set(df, a[i][j]);
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) sum[i][v] = hn::MulAdd(av, bv[v], sum[i][v]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) hn::StoreU(sum[i][v], df, c[i] + v * kLanes);
}

// All `n` columns (a multiple of 16) of `Rows` rows, `Vectors` vectors at a time.
template <int Rows, int Vectors>
HWY_INLINE void add_columns(const float* const* a, int begin, int end, const float* b, int n,
                            float* const* c, int column) {
  for (; column + Vectors * kLanes <= n; column += Vectors * kLanes) {
    float* at[Rows];
    for (int i = 0; i < Rows; ++i) at[i] = c[i] + column;
    add_products<Rows, Vectors>(a, begin, end, b + column, n, at);
  }
  if constexpr (Vectors > 1)
    if (column < n) add_columns<Rows, Vectors / 2>(a, begin, end, b, n, c, column);
}

// c[i][0..n) += a[i][begin..end) b[begin..end)[0..n) for `rows` rows; b [.., n] contiguous. The
// order of additions is the same for any number of rows and any vectors.
HWY_NOINLINE void add_matrix(const float* const* a, int rows, int begin, int end, const float* b,
                             int n, float* const* c) {
  int i = 0;
  for (; i + 4 <= rows; i += 4) add_columns<4, 2>(a + i, begin, end, b, n, c + i, 0);
  for (; i + 2 <= rows; i += 2) add_columns<2, 4>(a + i, begin, end, b, n, c + i, 0);
  if (i < rows) add_columns<1, 8>(a + i, begin, end, b, n, c + i, 0);
}

// scratch: keys [d][64], values [64][d], scores [64][64].
void AttendBlock(const AttendArguments& args, const AttendTask& task, float* scratch) {
  const DF df;
  const KvSource& source = task.source;
  const StepSequence& sequence = source.sequence;
  const int d = source.head_dim(), group = args.group, queries = task.query_count;
  float* keys = scratch;
  float* values = keys + d * kTileTokens;
  float* scores = values + d * kTileTokens;

  SoftmaxState state[kBlockQueries];
  const float* q[kBlockQueries];
  const int shift = place_shift(source.store.layout.format);
  int first[kBlockQueries], last[kBlockQueries];  // places that a query sees, inclusive
  for (int i = 0; i < queries; ++i) {
    const int m = task.query_begin + i, row = sequence.row_begin + m / group;
    const int64_t column = int64_t(source.head * group + m % group) * d;
    q[i] = args.q.row<float>(row) + column;
    last[i] = sequence.past + m / group + shift;
    first[i] = args.window > 0 ? HWY_MAX(shift, last[i] + 1 - args.window) : shift;
    state[i].out = task.partial == nullptr ? args.out.row<float>(row) + column
                                           : task.partial + int64_t(i) * (d + 2);
    for (int c = 0; c < d; c += kLanes) hn::StoreU(hn::Zero(df), df, state[i].out + c);
  }

  // Positions grow with the query: the block sees [first[0], last[queries - 1]].
  const TileReader reader(source);
  const KvFormat& format = source.store.layout.format;
  // A decode alone: a prompt that sees codes reads them without (docs/design/kv-format.md, 9).
  const bool biased = format.key_bias && sequence.is_decode();
  const float bias = -args.scale / 24;
  const int to_paged = -shift - format.sinks;
  const int begin = HWY_MAX(first[0], task.segment * kSegmentTokens);
  const int end = HWY_MIN(last[queries - 1] + 1, (task.segment + 1) * kSegmentTokens);
  for (int tile = begin / kTileTokens * kTileTokens; tile < end; tile += kTileTokens) {
    reader.read(tile + to_paged, sequence.past + sequence.row_count, keys, values);
    const float* a[kBlockQueries];
    float* c[kBlockQueries];
    int active[kBlockQueries], count = 0;  // queries that see some of the tile
    for (int i = 0; i < queries; ++i) {
      if (first[i] >= tile + kTileTokens || last[i] < tile) continue;
      a[count] = q[i];
      c[count] = scores + count * kTileTokens;
      for (int t = 0; t < kTileTokens; t += kLanes) hn::StoreU(hn::Zero(df), df, c[count] + t);
      active[count++] = i;
    }
    add_matrix(a, count, 0, d, keys, kTileTokens, c);
    if (biased)
      for (int n = 0; n < count; ++n) reader.add_key_bias(tile + to_paged, a[n], bias, c[n]);
    int low = kTileTokens, high = 0;
    for (int n = 0; n < count; ++n) {
      SoftmaxState& s = state[active[n]];
      const int from = HWY_MAX(0, first[active[n]] - tile);
      const int to = HWY_MIN(kTileTokens, last[active[n]] + 1 - tile);
      s.update(c[n], kTileTokens, from, to, args.scale, d);
      low = HWY_MIN(low, from);
      high = HWY_MAX(high, to);
      a[n] = c[n];
      c[n] = s.out;
    }
    add_matrix(a, count, low, high, values, d, c);
  }

  for (int i = 0; i < queries; ++i) {
    if (task.partial != nullptr) {
      state[i].out[d] = state[i].max;
      state[i].out[d + 1] = state[i].sum;
      continue;
    }
    const auto factor = hn::Set(df, 1.0f / state[i].sum);
    for (int c = 0; c < d; c += kLanes)
      hn::StoreU(hn::Mul(hn::LoadU(df, state[i].out + c), factor), df, state[i].out + c);
  }
}

// Joins the states of a block's segments, `task` being the one of the first.
void MergeBlock(const AttendArguments& args, const AttendTask& task, int segments) {
  const DF df;
  const int d = task.source.head_dim();
  for (int i = 0; i < task.query_count; ++i) {
    const auto state_of = [&](int segment) HWY_ATTR {
      SoftmaxState s;
      s.out = task.partial + int64_t(segment) * task.partial_stride + int64_t(i) * (d + 2);
      s.max = s.out[d];
      s.sum = s.out[d + 1];
      return s;
    };
    SoftmaxState all = state_of(0);
    for (int segment = 1; segment < segments; ++segment) all.merge(state_of(segment), d);
    const int m = task.query_begin + i;
    float* out = args.out.row<float>(task.source.sequence.row_begin + m / args.group) +
                 int64_t(task.source.head * args.group + m % args.group) * d;
    const auto factor = hn::Set(df, 1.0f / all.sum);
    for (int c = 0; c < d; c += kLanes)
      hn::StoreU(hn::Mul(hn::LoadU(df, all.out + c), factor), df, out + c);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace kivi
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kivi {
HWY_EXPORT(AttendBlock);
HWY_EXPORT(MergeBlock);

// Attention on the CPU prepares nothing for a step.
void CpuBackend::do_begin_step(const StepView&, const KvView&, int) {}

void CpuBackend::do_kv_attend(const Tensor& q, const Tensor& kv, const KvView& store,
                              const StepView& step, int layer, float scale, const Tensor& out) {
  const int d = store.layout.shape.head_dim, heads = store.layout.shape.heads;
  const AttendArguments args{q, out, int(q.shape[1] / d) / heads, step.sliding_window, scale};
  const int shift = place_shift(store.layout.format);
  std::vector<AttendTask> tasks;
  struct Merge {
    size_t task;  // the first segment's
    int segments;
  };
  std::vector<Merge> merges;
  size_t partial_floats = 0;
  int64_t work = 0;
  for (const StepSequence& s : step.sequences)
    for (int head = 0; head < heads; ++head)
      for (int begin = 0; begin < s.row_count * args.group; begin += kBlockQueries) {
        const int count = std::min(kBlockQueries, s.row_count * args.group - begin);
        const int row = begin / args.group, last_row = (begin + count - 1) / args.group;
        const int seen = args.window > 0 ? std::max(0, s.past + row + 1 - args.window) : 0;
        const int first = (seen + shift) / kSegmentTokens;
        const int segments = (s.past + last_row + shift) / kSegmentTokens + 1 - first;
        if (segments > 1) merges.push_back({tasks.size(), segments});
        const int stride = count * (d + 2);
        for (int segment = 0; segment < segments; ++segment)
          tasks.push_back(
              {{kv, store, step, s, layer, head}, begin, count, first + segment, nullptr, stride});
        if (segments > 1) partial_floats += size_t(stride) * size_t(segments);
        work += int64_t(s.past + last_row) * d * (count / 4 + 2);
      }
  // Partial states lie in the order of the merges.
  float* partial = partials_.floats(partial_floats);
  for (const Merge& merge : merges)
    for (int segment = 0; segment < merge.segments; ++segment) {
      AttendTask& task = tasks[merge.task + size_t(segment)];
      task.partial = partial;
      partial += task.partial_stride;
    }

  const size_t floats = size_t(2 * d + kBlockQueries) * kTileTokens;
  pool_.parallel_for(int64_t(tasks.size()), work, [&](int64_t i, int worker) {
    HWY_DYNAMIC_DISPATCH(AttendBlock)
    (args, tasks[size_t(i)], scratch_[size_t(worker)].floats(floats));
  });
  pool_.parallel_for(int64_t(merges.size()), int64_t(partial_floats), [&](int64_t i, int) {
    const Merge& merge = merges[size_t(i)];
    HWY_DYNAMIC_DISPATCH(MergeBlock)(args, tasks[merge.task], merge.segments);
  });
}

}  // namespace kivi
#endif
