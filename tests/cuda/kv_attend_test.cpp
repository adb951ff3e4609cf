// SPDX-License-Identifier: Apache-2.0
// Decode attention against fp64 over the numbers that the store holds.
#include "kernels/cpu/thread_pool.h"
#include "kernels/kv_codec.h"
#include "tests/cuda/store.h"

namespace kivi::test {
namespace {

struct Shape {
  int heads_q, heads_kv, head_dim;
};

// The block of a page, and a token's place in it.
const std::byte* page_of(const TestStore& store, int sequence, int head, int position, int& row) {
  const int page_tokens = store.layout().page_tokens();
  row = position % page_tokens;
  return store.host().page_block(0, store.sequence(sequence).pages[size_t(position / page_tokens)],
                                 head);
}

double read_token(const TestStore& store, int sequence, Side side, int head, int token, int c) {
  const KvLayout& layout = store.layout();
  const StoredSequence& s = store.sequence(sequence);
  const int position = token - layout.format.sinks, d = layout.shape.head_dim;
  if (position < 0 || position >= tokens_paged(layout.format, s.past, side)) {
    const int row = position < 0 ? token : position % layout.format.residual;
    const auto* rows = reinterpret_cast<const f16*>(
        store.host().slab(0, s.slot, head) +
        (position < 0 ? layout.sinks_offset(side) : layout.residual_offset(side)));
    return to_float(rows[row * d + swizzled_channel(row, c, d)]);
  }
  int row = 0;
  const std::byte* block = page_of(store, sequence, head, position, row);
  return side == Side::key ? read_key(layout, block, row, c) : read_value(layout, block, row, c);
}

// The sum over channels of (q D)^2 where the token's key is in codes; else 0.
double noise_of(const TestStore& store, int sequence, int head, int token, const float* q) {
  const KvLayout& layout = store.layout();
  const int position = token - layout.format.sinks;
  if (position < 0 || position >= keys_paged(layout.format, store.sequence(sequence).past))
    return 0;
  int row = 0;
  const std::byte* block = page_of(store, sequence, head, position, row);
  double sum = 0;
  for (int c = 0; c < layout.shape.head_dim; ++c) {
    const double x = double(q[c]) * to_float(read_key_parameters(layout, block, row, c).scale);
    sum += x * x;
  }
  return sum;
}

// The output row of one sequence, all heads, in fp64.
std::vector<float> reference(const TestStore& store, int sequence, const Shape& shape,
                             const float* q, const float* kv, int window, double scale) {
  const int d = shape.head_dim, past = store.sequence(sequence).past;
  const int begin = window > 0 ? std::max(0, past - window + 1) : 0, count = past + 1 - begin;
  const int ratio = shape.heads_q / shape.heads_kv;
  std::vector<float> out(size_t(shape.heads_q * d));
  std::vector<double> k(size_t(count * d)), v(size_t(count * d)), p(static_cast<size_t>(count));
  for (int head = 0; head < shape.heads_kv; ++head) {
    for (int i = 0; i < count; ++i)
      for (int c = 0; c < d; ++c) {
        const bool own = begin + i == past;
        k[size_t(i * d + c)] =
            own ? kv[head * d + c] : read_token(store, sequence, Side::key, head, begin + i, c);
        v[size_t(i * d + c)] = own ? kv[(shape.heads_kv + head) * d + c]
                                   : read_token(store, sequence, Side::value, head, begin + i, c);
      }
    for (int h = head * ratio; h < (head + 1) * ratio; ++h) {
      double most = -1e300, sum = 0, noise = 0;
      for (int i = 0; i < count; ++i) {
        double s = 0;
        const int position = begin + i - store.layout().format.sinks;
        if (store.layout().format.key_bias) {
          const int group = store.layout().format.group;
          if (i == 0 || position == 0 || (position > 0 && position % group == 0))
            noise = noise_of(store, sequence, head, begin + i, q + h * d);
          s = -noise * scale / 24;
        }
        for (int c = 0; c < d; ++c) s += double(q[h * d + c]) * k[size_t(i * d + c)];
        p[size_t(i)] = s * scale;
        most = std::max(most, p[size_t(i)]);
      }
      for (double& x : p) sum += x = std::exp(x - most);
      for (int c = 0; c < d; ++c) {
        double o = 0;
        for (int i = 0; i < count; ++i) o += p[size_t(i)] * v[size_t(i * d + c)];
        out[size_t(h * d + c)] = float(o / sum);
      }
    }
  }
  return out;
}

ThreadPool& reference_threads() {
  static ThreadPool pool(cpu_threads());
  return pool;
}

// One launch for each of `windows`, as layers of a step would have them. `shared`: of sequences.
void check_layers(const KvFormat& format, const Shape& shape, const std::vector<int>& lengths,
                  const std::vector<int>& windows, DType out_type, unsigned seed,
                  float q_size = 1.5f, const std::vector<SharedPages>& shared = {},
                  bool whole_rests = false) {
  CAPTURE(int(format.kind), format.key_bits, format.value_bits, format.group, format.residual,
          format.sinks, format.parameter_bits, format.key_bias, shape.heads_q, shape.heads_kv,
          shape.head_dim, windows, name_of(out_type), seed);
  std::mt19937 random(seed);
  const int n = int(lengths.size()), d = shape.head_dim;
  const int most = *std::max_element(lengths.begin(), lengths.end());
  TestStore store({format, {1, shape.heads_kv, d}}, n, most + 1, random);
  for (int i = 0; i < n; ++i) {
    if (lengths[size_t(i)] == 0) continue;
    const std::vector<Chunk> chunks = {{i, lengths[size_t(i)]}};
    Pair kv(lengths[size_t(i)], store.kv_columns(), DType::f16, DType::f16);
    kv.randomize(random);
    cpu().kv_append(kv.on_cpu(), store.host(), store.plan(chunks), 0);
    store.commit(chunks);
  }
  for (const SharedPages& s : shared)
    for (const int i : s.chunks) store.share(s.chunks[0], i, s.pages);
  store.send();
  std::vector<Chunk> chunks;
  for (int i = 0; i < n; ++i) chunks.push_back({i});
  Pair q(n, shape.heads_q * d, DType::f16), kv(n, store.kv_columns(), DType::f16, DType::f16),
      out(n, shape.heads_q * d, out_type);
  q.randomize(random, q_size);
  kv.randomize(random);
  const float scale = 1.f / std::sqrt(float(d));
  StepView step = store.plan(chunks, windows[0], shared);
  step.whole_rests = whole_rests;
  gpu().begin_step(step, store.device(), shape.heads_q);
  for (const int window : windows) {
    step.sliding_window = window;
    gpu().kv_attend(q.on_gpu(), kv.on_gpu(), store.device(), step, 0, scale, out.on_gpu());
    const std::vector<float> got = out.gpu_result();
    gpu().kv_attend(q.on_gpu(), kv.on_gpu(), store.device(), step, 0, scale, out.on_gpu());
    REQUIRE(out.gpu_result() == got);  // whichever warp comes last
    const int columns = shape.heads_q * d;
    const std::vector<float>& queries = q.values();
    const std::vector<float>& own = kv.values();
    std::vector<std::vector<float>> expected(lengths.size());
    reference_threads().parallel_for(n, ThreadPool::kInlineWork, [&](int64_t i, int) {
      expected[size_t(i)] = reference(store, int(i), shape, &queries[size_t(i * columns)],
                                      &own[size_t(i * store.kv_columns())], window, scale);
    });
    for (int i = 0; i < n; ++i) {
      const std::vector<float> row(got.begin() + i * columns, got.begin() + (i + 1) * columns);
      CAPTURE(lengths[size_t(i)], window);
      CHECK(close_everywhere(row, expected[size_t(i)], d, attention_tolerance(out_type)));
    }
  }
}

void check(const KvFormat& format, const Shape& shape, const std::vector<int>& lengths, int window,
           DType out_type, unsigned seed, float q_size = 1.5f) {
  check_layers(format, shape, lengths, {window}, out_type, seed, q_size);
}

std::vector<int> awkward_lengths(const KvFormat& f) {
  std::vector<int> lengths = {0, 1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 191, 193, 1003};
  if (f.residual > 0)
    for (const int n : {f.residual - 1, f.residual, f.residual + 1, 2 * f.residual - 1,
                        2 * f.residual, 2 * f.residual + 1, 3 * f.residual + 45})
      lengths.push_back(f.sinks + n);
  if (f.sinks > 0)
    for (const int n : {-17, -16, -1, 0, 1, 15, 16, 63, 64, 65}) lengths.push_back(f.sinks + n);
  return lengths;
}

// The lengths again and again, 40 in all.
std::vector<int> repeated(const std::vector<int>& lengths) {
  std::vector<int> all(40);
  for (size_t i = 0; i < all.size(); ++i) all[i] = lengths[i % lengths.size()];
  return all;
}

}  // namespace

TEST_CASE("decode attention equals fp64 over the dequantized cache, every format and length") {
  for (const int d : {64, 128})
    for (const KvFormat& format : all_formats(d))
      check(format, {4, 2, d}, awkward_lengths(format), 0, DType::f16, 21);
}

TEST_CASE("decode attention equals fp64 at every ratio of query heads to KV heads") {
  const KvFormat kivi2{KvKind::kivi, 2, 2, 32, 32}, kivi4{KvKind::kivi, 4, 4, 64, 64};
  const KvFormat kivi25{KvKind::kivi, 2, 2, 32, 32, 32, 8, true};
  const KvFormat kivi45{KvKind::kivi, 4, 4, 32, 32, 32, 8, true};
  for (const KvFormat& format : {kivi2, kivi4, kivi25, kivi45, f16_format(), f8_format()})
    for (const Shape& shape : {Shape{2, 2, 128},
                               {4, 2, 128},
                               {6, 2, 128},
                               {8, 2, 128},
                               {8, 1, 128},
                               {12, 1, 128},
                               {16, 1, 64},
                               {71, 1, 64}}) {
      check(format, shape, {0, 5, 64, 100, 161, 700}, 0, DType::f16, 22);
      check(format, shape, {333}, 0, DType::bf16, 23);
    }
}

TEST_CASE("decode attention sees the sliding window and nothing before it") {
  for (const KvFormat& format : all_formats(128))
    for (const int window : {1, 2, 40, 64, 100, 200, 513})
      check(format, {4, 1, 128}, {0, 1, 63, 64, 129, 400, 777}, window, DType::f16, 24);
}

TEST_CASE("layers of one step attend through windows of their own") {
  const KvFormat kivi2{KvKind::kivi, 2, 2, 32, 32}, kivi25{KvKind::kivi, 2, 2, 32, 32, 32, 8, true};
  for (const KvFormat& format : {kivi2, kivi25, f16_format(), f8_format()}) {
    const std::vector<int> lengths = {0, 1, 63, 64, 129, 400, 777};
    check_layers(format, {4, 1, 128}, lengths, {0, 100, 100, 0, 0, 100}, DType::f16, 41);
    check_layers(format, {4, 2, 64}, lengths, {40, 0, 40}, DType::bf16, 42);
    check_layers(format, {71, 1, 64}, repeated(lengths), {64, 0, 64}, DType::f16, 43);
  }
}

TEST_CASE("decode attention splits one long sequence over the whole device") {
  const KvFormat kivi2{KvKind::kivi, 2, 2, 32, 128}, kivi4{KvKind::kivi, 4, 4, 128, 128};
  const KvFormat kivi35{KvKind::kivi, 4, 2, 32, 128, 32, 8, true};
  for (const KvFormat& format : {kivi2, kivi4, kivi35, f16_format(), f8_format()}) {
    check(format, {4, 1, 128}, {12345}, 0, DType::f16, 25);
    check(format, {4, 1, 128}, {9000, 3, 0, 4100, 64}, 0, DType::f16, 26);
  }
}

// From 32 sequences on, more than 48 query heads on a KV head have a kernel of their own on Hopper,
// for codes.
TEST_CASE("decode attention of many query heads on one KV head equals fp64") {
  const KvFormat kivi2{KvKind::kivi, 2, 2, 32, 32}, kivi4{KvKind::kivi, 4, 4, 64, 64};
  const KvFormat sinks{KvKind::kivi, 2, 2, 32, 128, 32}, wide{KvKind::kivi, 4, 4, 32, 32, 32};
  const KvFormat kivi25{KvKind::kivi, 2, 2, 32, 32, 32, 8, true};
  const KvFormat kivi35{KvKind::kivi, 4, 2, 32, 128, 32, 8, true};
  const KvFormat kivi45{KvKind::kivi, 4, 4, 64, 64, 64, 8, true};
  const KvFormat bytes{KvKind::kivi, 2, 4, 32, 32, 0, 8},
      bias{KvKind::kivi, 2, 2, 32, 32, 0, 16, true};
  for (const KvFormat& format : {kivi2, kivi4, sinks, wide, kivi25, kivi35, kivi45, bytes, bias}) {
    check(format, {71, 1, 64}, repeated(awkward_lengths(format)), 0, DType::f16, 31);
    check(format, {142, 2, 64}, repeated({0, 5, 64, 100, 161, 700}), 0, DType::bf16, 32);
    check(format, {100, 1, 64}, repeated({333, 1, 64, 1047}), 0, DType::f16, 33);
    check(format, {71, 1, 64}, std::vector<int>(300, 70), 0, DType::f16, 36);
    for (const int window : {1, 40, 64, 200, 513})
      check(format, {71, 1, 64}, repeated({0, 1, 63, 64, 129, 400, 777}), window, DType::f16, 37);
  }
  for (const KvFormat& format : {kivi2, kivi35}) {
    std::vector<int> one_long = repeated({3, 70});
    one_long[7] = 9000;
    check(format, {49, 1, 64}, one_long, 0, DType::f16, 34);
    check(format, {71, 1, 64}, std::vector<int>(64, 300), 0, DType::f16, 35);
    // Logits that pass the running maximum by far.
    check(format, {71, 1, 64}, repeated({40, 1500, 700}), 0, DType::f16, 38, 5.f);
  }
}

// Small enough for compute-sanitizer.
TEST_CASE("short sequences with many query heads on one KV head equal fp64") {
  const KvFormat kivi2{KvKind::kivi, 2, 2, 32, 32};
  const KvFormat kivi35{KvKind::kivi, 4, 2, 32, 32, 32, 8, true};
  for (const KvFormat& format : {kivi2, kivi35})
    check(format, {71, 1, 64}, repeated({0, 70, 33, 140}), 100, DType::f16, 39);
}

namespace {

// Groups of sequences that share pages, and one sequence before each group that shares none.
// `members`: of each group; `pages`: what it shares; `rest`: tokens that members have besides, in
// turn.
struct Sharing {
  int members, pages;
};
void check_shared(const KvFormat& format, const Shape& shape, const std::vector<Sharing>& groups,
                  const std::vector<int>& rest, const std::vector<int>& windows, DType out_type,
                  unsigned seed, float q_size = 1.5f) {
  const int page_tokens = KvLayout{format, {1, 1, shape.head_dim}}.page_tokens();
  std::vector<int> lengths;
  std::vector<SharedPages> shared;
  for (const Sharing& sharing : groups) {
    lengths.push_back(rest[lengths.size() % rest.size()]);
    SharedPages group{{}, sharing.pages};
    for (int i = 0; i < sharing.members; ++i) {
      group.chunks.push_back(int(lengths.size()));
      lengths.push_back(format.sinks + format.residual + sharing.pages * page_tokens +
                        rest[size_t(i) % rest.size()]);
    }
    shared.push_back(group);
  }
  CAPTURE(groups.size(), groups[0].members, groups[0].pages);
  check_layers(format, shape, lengths, windows, out_type, seed, q_size, shared);
}

const KvFormat kShared2{KvKind::kivi, 2, 2, 32, 32}, kShared4{KvKind::kivi, 4, 4, 64, 64};
const KvFormat kShared25{KvKind::kivi, 2, 2, 32, 32, 32, 8, true};
const KvFormat kShared45{KvKind::kivi, 4, 4, 32, 32, 32, 8, true};

}  // namespace

TEST_CASE("decode attention to shared pages equals fp64 in every format") {
  for (const int d : {64, 128})
    for (const KvFormat& format : all_formats(d))
      check_shared(format, {4, 2, d}, {{5, 2}, {3, 1}}, {0, 1, 17, 64, 130}, {0}, DType::f16, 51);
}

TEST_CASE("decode attention to shared pages equals fp64 at every ratio of heads") {
  for (const KvFormat& format :
       {kShared2, kShared4, kShared25, kShared45, f16_format(), f8_format()})
    for (const Shape& shape : {Shape{2, 2, 128},
                               {4, 2, 128},
                               {4, 1, 128},
                               {14, 2, 128},
                               {8, 1, 128},
                               {12, 1, 128},
                               {16, 1, 64},
                               {71, 1, 64}}) {
      check_shared(format, shape, {{9, 3}, {2, 1}}, {0, 5, 64, 100}, {0}, DType::f16, 52);
      check_shared(format, shape, {{4, 2}}, {333, 1}, {0}, DType::bf16, 53);
    }
}

TEST_CASE("decode attention to shared pages equals fp64 for groups of many sizes") {
  for (const KvFormat& format : {kShared2, kShared25, f16_format()})
    for (const int members : {1, 2, 17, 64, 65, 130}) {
      check_shared(format, {2, 2, 128}, {{members, 3}}, {0, 40, 7}, {0}, DType::f16, 54);
      check_shared(format, {8, 2, 64}, {{members, 2}}, {3, 90}, {0}, DType::f16, 55);
    }
}

TEST_CASE("decode attention to shared pages splits long prefixes and many groups") {
  for (const KvFormat& format : {kShared2, kShared45, f16_format(), f8_format()}) {
    check_shared(format, {4, 1, 128}, {{3, 70}}, {0, 100}, {0}, DType::f16, 56);
    check_shared(format, {8, 2, 128}, {{3, 20}, {33, 3}, {2, 40}, {5, 1}}, {0, 33, 300}, {0},
                 DType::f16, 57);
    check_shared(format, {8, 8, 64}, {{3, 21}, {70, 2}}, {12, 64}, {0}, DType::f16, 58);
    check_shared(format, {4, 2, 128}, std::vector<Sharing>(40, {2, 2}), {9, 70}, {0}, DType::f16,
                 59);
  }
}

TEST_CASE("layers with a window read shared pages like others") {
  for (const KvFormat& format : {kShared2, kShared25, f16_format(), f8_format()}) {
    check_shared(format, {4, 1, 128}, {{6, 3}}, {0, 50}, {0, 100, 100, 0}, DType::f16, 60);
    check_shared(format, {4, 2, 64}, {{3, 2}, {4, 4}}, {0, 50}, {40, 0, 40, 0}, DType::bf16, 61);
  }
}

// Samples of one prompt, whose rests a launch deals out whole where it is asked to.
TEST_CASE("decode attention to shared pages deals out whole rests") {
  const KvFormat kivi225{KvKind::kivi, 2, 2, 64, 64, 64, 8, true};
  const auto check_whole = [](const KvFormat& format, const Shape& shape,
                              const std::vector<int>& rests, std::vector<int> windows,
                              DType out_type, unsigned seed) {
    SharedPages group{{}, 2};
    std::vector<int> lengths;
    for (const int rest : rests) {
      group.chunks.push_back(int(lengths.size()));
      lengths.push_back(format.sinks + format.residual + 128 + rest);
    }
    CAPTURE(rests.size(), rests[0]);
    check_layers(format, shape, lengths, windows, out_type, seed, 1.5f, {group}, true);
  };
  check_whole(kShared25, {32, 32, 128}, std::vector<int>(64, 64), {0}, DType::f16, 62);
  // More than a round of the device's warps, and a number that the warps do not divide.
  check_whole(kShared2, {33, 33, 128}, std::vector<int>(67, 1), {0}, DType::f16, 63);
  const KvFormat bias{KvKind::kivi, 2, 2, 32, 32, 0, 16, true};  // has no room for whole rests
  for (const KvFormat& format : {kShared2, kShared25, kivi225, bias}) {
    check_whole(format, {16, 4, 128}, std::vector<int>(37, 5), {0}, DType::bf16, 64);
    check_whole(format, {3, 3, 128}, std::vector<int>(50, 130), {0}, DType::f16, 65);
    check_whole(format, {8, 4, 128}, {3, 90, 3, 200, 64, 7}, {0}, DType::f16, 68);
    // Layers with a window, and head size 64, are cut.
    check_whole(format, {8, 4, 128}, std::vector<int>(9, 20), {0, 100, 0}, DType::f16, 66);
    check_whole(format, {8, 4, 64}, std::vector<int>(9, 20), {0}, DType::f16, 67);
  }
}

TEST_CASE("groups are kept where reading their pages once spares time") {
  const KvLayout layout{kShared2, {32, 32, 128}};
  const StepGroup many{.pages = 32, .member_count = 64}, few{.pages = 1, .member_count = 2};
  std::vector<StepGroup> groups = {few, many};
  const int most = gpu().keep_groups(layout, 32, {.pages = 64}, groups).most;
  if (!groups.empty()) {  // the device has the kernels
    REQUIRE(groups.size() == 1);
    CHECK(groups[0].member_count == 64);
    CHECK(most >= 1);
    groups = {few};
    gpu().keep_groups(layout, 32, {.pages = 64}, groups);
    CHECK(groups.empty());
    // What the members have of their own takes longer beside shared pages.
    groups = {many};
    gpu().keep_groups(layout, 32, {.pages = 64 * 200}, groups);
    CHECK(groups.empty());
    // Rests that fill the device's warps are not cut, where they are short.
    const auto whole = [&](int members, int tokens) {
      groups = {{.pages = 32, .member_count = members}};
      return gpu()
          .keep_groups(layout, 32, {.pages = members, .tokens = tokens}, groups)
          .whole_rests;
    };
    int often = 0;  // which numbers do depends on the device's multiprocessors
    for (int members = 1; members <= 256; ++members) often += whole(members, 64);
    CHECK(often > 5);
    CHECK(often < 64);
    CHECK_FALSE(whole(64, -1));
    CHECK_FALSE(whole(64, 2000));
    CHECK_FALSE(whole(16, 64));
    CHECK_FALSE(whole(256, 64));
    // More than there is room for.
    groups.assign(40, {.pages = 500, .member_count = 256});
    gpu().keep_groups(layout, 32, {.pages = 64}, groups);
    CHECK(groups.size() < 40);
  }
  groups = {many};
  cpu().keep_groups(layout, 32, {.pages = 64}, groups);
  CHECK(groups.empty());
}

// Sequences of one length are cut so that blocks end where segments do; others are not.
TEST_CASE("decode attention of many sequences of one length equals fp64") {
  const KvFormat kivi2{KvKind::kivi, 2, 2, 32, 32}, kivi25{KvKind::kivi, 2, 2, 32, 32, 32, 8, true};
  for (const KvFormat& format : {kivi2, kivi25, f16_format()})
    for (const auto& [count, length] : {std::pair{8, 500}, {33, 200}, {64, 130}, {128, 70}})
      check(format, {4, 2, 128}, std::vector<int>(size_t(count), length), 0, DType::f16, 27);
}

// Layers after a step's first reuse its plan and start while the append before them still runs.
TEST_CASE("layers share a step's plan, and each step has its own") {
  const KvFormat kivi2{KvKind::kivi, 2, 2, 32, 32}, kivi4{KvKind::kivi, 4, 4, 64, 64};
  const KvFormat kivi25{KvKind::kivi, 2, 2, 32, 32, 32, 8, true};
  const KvFormat kivi35{KvKind::kivi, 4, 2, 64, 64, 64, 8, true};
  for (const KvFormat& format : {kivi2, kivi4, kivi25, kivi35, f16_format(), f8_format()}) {
    CAPTURE(int(format.kind), format.key_bits, format.sinks);
    std::mt19937 random(28);
    const Shape shape{8, 2, 128};
    const int layers = 4, sequences = 5;
    TestStore store({format, {layers, shape.heads_kv, shape.head_dim}}, sequences, 600, random);
    const float scale = 1.f / std::sqrt(float(shape.head_dim));
    const auto step = [&](const std::vector<Chunk>& chunks, bool decodes) {
      const StepView& view = store.plan(chunks);
      Pair kv(view.rows, store.kv_columns(), DType::f16, DType::f16);
      std::vector<std::unique_ptr<Pair>> q, out;
      for (int layer = 0; layer < layers; ++layer) {
        q.push_back(std::make_unique<Pair>(view.rows, shape.heads_q * shape.head_dim, DType::f16));
        out.push_back(
            std::make_unique<Pair>(view.rows, shape.heads_q * shape.head_dim, DType::f16));
        q.back()->randomize(random, 1.5f);
      }
      kv.randomize(random);
      cpu().begin_step(view, store.host(), shape.heads_q);
      gpu().begin_step(view, store.device(), shape.heads_q);
      for (size_t layer = 0; layer < layers; ++layer) {
        if (decodes) {
          cpu().kv_attend(q[layer]->on_cpu(), kv.on_cpu(), store.host(), view, int(layer), scale,
                          out[layer]->on_cpu());
          gpu().kv_attend(q[layer]->on_gpu(), kv.on_gpu(), store.device(), view, int(layer), scale,
                          out[layer]->on_gpu());
        }
        cpu().kv_append(kv.on_cpu(), store.host(), view, int(layer));
        gpu().kv_append(kv.on_gpu(), store.device(), view, int(layer));
      }
      store.commit(chunks);
      if (!decodes) return;
      for (size_t layer = 0; layer < layers; ++layer) {
        CAPTURE(layer, store.sequence(0).past);
        CHECK(out[layer]->agrees(attention_tolerance(DType::f16), shape.head_dim));
      }
      REQUIRE(store.same_bytes(0));
    };
    step({{0, 31}, {1, 300}, {2, 63}, {3, 1}, {4, 130}}, false);
    for (int i = 0; i < 70; ++i) step({{0}, {1}, {2}, {3}, {4}}, true);
    for (int i = 0; i < 5; ++i) step({{4}, {1}}, true);
  }
}

// The same step, layer and store: what the append has written since is seen.
TEST_CASE("attention after an append to its layer sees what was appended") {
  const KvFormat kivi2{KvKind::kivi, 2, 2, 32, 32};
  std::mt19937 random(29);
  TestStore store({kivi2, {1, 1, 128}}, 1, 200, random);
  const std::vector<Chunk> prompt = {{0, 131}}, token = {{0}};
  Pair first(131, store.kv_columns(), DType::f16, DType::f16);
  first.randomize(random);
  cpu().kv_append(first.on_cpu(), store.host(), store.plan(prompt), 0);
  store.commit(prompt);
  store.send();
  const StepView& step = store.plan(token);
  Pair q(1, 4 * 128, DType::f16), kv(1, store.kv_columns(), DType::f16, DType::f16),
      out(1, 4 * 128, DType::f16);
  q.randomize(random);
  kv.randomize(random);
  for (int i = 0; i < 20; ++i) {  // the token's row is overwritten, an old value evicted again
    cpu().begin_step(step, store.host(), 4);
    gpu().begin_step(step, store.device(), 4);
    cpu().kv_attend(q.on_cpu(), kv.on_cpu(), store.host(), step, 0, 0.1f, out.on_cpu());
    cpu().kv_append(kv.on_cpu(), store.host(), step, 0);
    gpu().kv_attend(q.on_gpu(), kv.on_gpu(), store.device(), step, 0, 0.1f, out.on_gpu());
    gpu().kv_append(kv.on_gpu(), store.device(), step, 0);
    CHECK(out.agrees(attention_tolerance(DType::f16), 128));
  }
}

}  // namespace kivi::test
