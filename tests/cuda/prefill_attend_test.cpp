// SPDX-License-Identifier: Apache-2.0
// Flash prefill against the CPU: own rows, staging, f16 pages, quantized pages and residual as
// history; ragged sequences, GQA, sliding windows. The store's bytes come from the CPU's append.
#include <cstring>

#include "kernels/kv_codec.h"
#include "tests/cuda/store.h"

namespace kivi::test {
namespace {

struct Case {
  KvFormat format;
  int heads_q, heads_kv, head_dim, window;
  KvMode mode;
  std::vector<std::pair<int, int>> sequences;  // past, rows
  int64_t scratch_bytes = int64_t(16) << 20;
};

// One region of the store in host memory and on the device.
struct Region {
  std::vector<std::byte> host;
  Buffer device;
  explicit Region(size_t bytes) : host(std::max<size_t>(bytes, 256)) {
    auto b = gpu().allocate(host.size(), "test store");
    REQUIRE(b.ok());
    device = std::move(b).value();
  }
  void send() { gpu().upload(device.data(), host.data(), host.size()); }
};

void check(const Case& c, std::mt19937& random) {
  const KvLayout layout{c.format, {2, c.heads_kv, c.head_dim}};
  const int n = int(c.sequences.size());
  KvView view{layout};
  std::vector<int32_t> table;
  std::vector<StepSequence> sequences;
  int pages = 0, staging_pages = 0, rows = 0;
  for (int i = 0; i < n; ++i) {
    const auto [past, count] = c.sequences[size_t(i)];
    StepSequence s{.row_begin = rows, .row_count = count, .past = past, .slot = i, .mode = c.mode};
    s.pages_begin = int(table.size());
    s.pages_count = (past + count + layout.page_tokens() - 1) / layout.page_tokens();
    for (int p = 0; p < s.pages_count; ++p) table.push_back(pages++);
    s.staging_begin = int(table.size());
    s.staging_count = (past + count + 63) / 64;
    for (int p = 0; p < s.staging_count; ++p) table.push_back(staging_pages++);
    rows += count;
    sequences.push_back(s);
  }
  view.page_count = pages;
  view.slot_count = n;
  view.staging_page_count = staging_pages;
  Region pool(size_t(layout.page_bytes()) * size_t(pages)),
      residual(size_t(layout.slot_bytes()) * size_t(n)),
      staging(size_t(layout.staging_page_bytes()) * size_t(staging_pages)),
      scratch(size_t(c.scratch_bytes));
  // What is read before it is written is NaN.
  std::memset(scratch.host.data(), 0xFF, scratch.host.size());
  for (Region* region : {&pool, &residual, &staging})
    std::memset(region->host.data(), 0xFF, region->host.size());
  view.pages = pool.host.data();
  view.slots = residual.host.data();
  view.staging = staging.host.data();

  // History: appended on the CPU with random values.
  const int width = 2 * c.heads_kv * c.head_dim;
  for (int i = 0; i < n; ++i) {
    if (sequences[size_t(i)].past == 0) continue;
    StepSequence s = sequences[size_t(i)];
    s.row_begin = 0;
    s.row_count = s.past;
    s.past = 0;
    if (s.mode == KvMode::seal) s.mode = KvMode::stage;
    Pair kv(s.row_count, width, DType::f16, DType::f16);
    kv.randomize(random);
    StepView step;
    step.rows = s.row_count;
    step.sequences = {&s, 1};
    step.page_table = table;
    for (int layer = 0; layer < 2; ++layer) cpu().kv_append(kv.on_cpu(), view, step, layer);
  }
  pool.send();
  residual.send();
  staging.send();
  scratch.send();
  KvView device_view = view;
  device_view.scratch = scratch.device.data();
  device_view.scratch_bytes = c.scratch_bytes;
  device_view.pages = pool.device.data();
  device_view.slots = residual.device.data();
  device_view.staging = staging.device.data();

  constexpr size_t kWords = sizeof(StepSequence) / sizeof(int32_t);
  std::vector<int32_t> packed(size_t(n) * kWords);
  std::memcpy(packed.data(), sequences.data(), packed.size() * 4);
  PairOfInts device_sequences(packed), device_table(table);
  std::vector<int32_t> ids(size_t(rows), 0);
  PairOfInts positions(ids);
  StepView step;
  step.rows = rows;
  step.sequences = sequences;
  step.page_table = table;
  step.token_ids = positions.on_gpu();
  step.positions = positions.on_gpu();
  step.device_sequences = device_sequences.on_gpu();
  step.device_sequences = make_tensor(device_sequences.on_gpu().data, DType::i32, n, kWords);
  step.device_page_table = device_table.on_gpu();
  step.sliding_window = c.window;

  const float scale = 1.f / std::sqrt(float(c.head_dim));
  for (const DType out_type : {DType::f16, DType::bf16}) {
    Pair q(rows, c.heads_q * c.head_dim, DType::f16), kv(rows, width, DType::f16, DType::f16),
        out(rows, c.heads_q * c.head_dim, out_type);
    q.randomize(random, 2);
    kv.randomize(random);
    cpu().begin_step(step, view, c.heads_q);
    gpu().begin_step(step, device_view, c.heads_q);
    cpu().kv_attend(q.on_cpu(), kv.on_cpu(), view, step, 1, scale, out.on_cpu());
    gpu().kv_attend(q.on_gpu(), kv.on_gpu(), device_view, step, 1, scale, out.on_gpu());
    CAPTURE(name_of(out_type), int(c.format.kind), c.format.key_bits, c.format.sinks, c.heads_q,
            c.heads_kv, c.head_dim, c.window, int(c.mode), c.scratch_bytes,
            c.sequences.front().first);
    CHECK(out.agrees(attention_tolerance(out_type), c.head_dim));
  }
}

}  // namespace

TEST_CASE("flash prefill equals the CPU's attention over every kind of history") {
  std::mt19937 random(7);
  const KvFormat f16{}, f8{KvKind::f8, 8, 8, 0, 0}, kivi2{KvKind::kivi, 2, 2, 32, 32},
      kivi4{KvKind::kivi, 4, 4, 32, 128}, mixed{KvKind::kivi, 4, 2, 64, 64},
      kivi25{KvKind::kivi, 2, 2, 32, 32, 32, 8, true},
      kivi225{KvKind::kivi, 2, 2, 64, 64, 64, 8, true};
  const std::vector<std::pair<int, int>> fresh = {{0, 1}, {0, 17}, {0, 64}, {0, 130}};
  const std::vector<std::pair<int, int>> ragged = {
      {5, 3}, {64, 65}, {131, 2}, {200, 33}, {300, 64}};
  for (const auto& [hq, hk] : {std::pair{4, 2}, {3, 3}, {8, 1}, {71, 1}})
    for (const int d : {64, 80, 96, 128, 256}) {
      check({f16, hq, hk, d, 0, KvMode::append, fresh}, random);
      check({f16, hq, hk, d, 0, KvMode::append, ragged}, random);
    }
  for (const KvFormat& f : {f8, kivi2, kivi4, mixed, kivi25, kivi225})
    for (const int d : {64, 96, 128, 256}) {
      if (d % std::max(1, f.group) != 0) continue;
      check({f, 4, 2, d, 0, KvMode::append, fresh}, random);
      check({f, 4, 2, d, 0, KvMode::append, ragged}, random);
      check({f, 4, 2, d, 0, KvMode::stage, ragged}, random);
      check({f, 8, 2, d, 100, KvMode::append, ragged}, random);
      check({f, 8, 2, d, 100, KvMode::seal, ragged}, random);
    }
}

// Histories of sizes about tiles, pages and residuals; a chunk that begins inside a tile.
TEST_CASE("flash prefill equals the CPU's attention upon histories of awkward sizes") {
  std::mt19937 random(8);
  const KvFormat kivi2{KvKind::kivi, 2, 2, 32, 32}, kivi4{KvKind::kivi, 4, 4, 32, 128},
      k2v4{KvKind::kivi, 2, 4, 32, 96}, g128{KvKind::kivi, 4, 4, 128, 128},
      kivi25{KvKind::kivi, 2, 2, 32, 32, 32, 8, true},
      kivi35{KvKind::kivi, 4, 2, 64, 64, 64, 8, true},
      sinks96{KvKind::kivi, 2, 4, 32, 96, 96, 16, true},
      sinks128{KvKind::kivi, 4, 4, 128, 128, 128, 8, true};
  std::vector<std::pair<int, int>> sequences;
  for (const int past : {1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 191, 193, 255, 256, 257, 449})
    sequences.emplace_back(past, 2 + past % 5 * 17);
  for (const KvFormat& f :
       {f16_format(), f8_format(), kivi2, kivi4, k2v4, g128, kivi25, kivi35, sinks96, sinks128})
    for (const int d : {64, 80, 96, 128, 256}) {
      if (f.kind == KvKind::kivi && d % f.group != 0) continue;
      check({f, 2, 2, d, 0, KvMode::append, sequences}, random);
      check({f, 8, 2, d, 0, KvMode::append, sequences}, random);
      const std::vector<int> windows =
          d == 256 ? std::vector<int>{65, 300} : std::vector<int>{1, 63, 64, 65, 130, 300};
      for (const int window : windows)
        check({f, 8, 2, d, window, KvMode::append, sequences}, random);
    }
  check({kivi2, 8, 1, 128, 0, KvMode::append, {{300, 9}, {129, 70}}}, random);
  // Decodes that no decode kernel computes, with and without a key bias.
  std::vector<std::pair<int, int>> decodes;
  for (const int past : {0, 1, 31, 32, 33, 63, 64, 65, 96, 127, 128, 129, 191, 300, 515})
    decodes.emplace_back(past, 1);
  for (const KvFormat& f :
       {f16_format(), f8_format(), kivi2, kivi25, kivi35, sinks96, sinks128, kivi4})
    for (const int d : {80, 96, 256})
      for (const int window : {0, 70})
        if (f.kind != KvKind::kivi || d % f.group == 0)
          check({f, 6, 2, d, window, KvMode::append, decodes}, random);
  check({kivi4, 71, 1, 64, 0, KvMode::append, {{300, 9}, {129, 70}, {0, 30}, {77, 1}}}, random);
}

// Scratch that holds some of a history at a time, and none.
TEST_CASE("flash prefill merges the blocks of a history that scratch does not hold at once") {
  std::mt19937 random(9);
  const KvFormat kivi2{KvKind::kivi, 2, 2, 32, 32}, kivi4{KvKind::kivi, 4, 4, 32, 128},
      kivi25{KvKind::kivi, 2, 2, 32, 32, 32, 8, true};
  const std::vector<std::pair<int, int>> long_ones = {{2500, 40}, {30, 20}, {4000, 131}, {1100, 2}};
  for (const KvFormat& f : {f8_format(), kivi2, kivi4, kivi25})
    for (const int d : {64, 96, 128, 256}) {
      const KvLayout layout{f, {2, 2, d}};
      const int64_t tile = 2 * int64_t(layout.staging_block_bytes());
      const int64_t states = int64_t(193) * 8 * (d + 2) * 4;
      for (const int64_t scratch : {int64_t(0), 5 * tile, 17 * tile + states, 33 * tile + states,
                                    40 * tile + states, 64 * tile})
        check({f, 8, 2, d, 0, KvMode::append, long_ones, scratch}, random);
      check({f, 8, 2, d, 1500, KvMode::append, long_ones, 17 * tile + states}, random);
    }
}

// Steps of few rows, which attend to ranges of a long history at once.
TEST_CASE("flash prefill joins the ranges of a long history") {
  std::mt19937 random(11);
  const KvFormat kivi2{KvKind::kivi, 2, 2, 32, 32}, kivi4{KvKind::kivi, 4, 4, 32, 128},
      kivi25{KvKind::kivi, 2, 2, 32, 32, 32, 8, true};
  const std::vector<std::pair<int, int>> several = {{4160, 5}, {30, 7},   {2047, 2},
                                                    {2112, 3}, {3001, 1}, {2500, 33}};
  for (const KvFormat& f : {f8_format(), kivi2, kivi25})
    for (const int d : {64, 96, 128, 256}) {
      check({f, 8, 2, d, 0, KvMode::append, several}, random);
      check({f, 4, 1, d, 1500, KvMode::append, several}, random);
    }
  check({kivi4, 8, 2, 128, 20, KvMode::append, several}, random);
  check({kivi4, 8, 2, 128, 3000, KvMode::append, several}, random);
  // Up to eight ranges; scratch that holds a part of the history, and its states.
  const KvLayout layout{kivi25, {2, 1, 128}};
  const int64_t tile = layout.staging_block_bytes(), states = int64_t(9) * 4 * (128 + 2) * 4;
  for (const int64_t scratch :
       {int64_t(16) << 20, 40 * tile, 64 * tile + 4 * states, 100 * tile + 8 * states})
    check({kivi25, 4, 1, 128, 0, KvMode::append, {{9000, 9}}, scratch}, random);
}

// More sequences than a launch takes.
TEST_CASE("flash prefill equals the CPU's attention for a step of many sequences") {
  std::mt19937 random(10);
  const KvFormat kivi2{KvKind::kivi, 2, 2, 32, 32}, kivi25{KvKind::kivi, 2, 2, 32, 32, 32, 8, true};
  std::vector<std::pair<int, int>> many;
  for (int i = 0; i < 150; ++i) many.emplace_back(i % 7 * 40, 1 + i % 3 * 5);
  for (const KvFormat& f : {kivi2, kivi25, f16_format()})
    for (const int d : {64, 96, 128, 256}) check({f, 2, 1, d, 0, KvMode::append, many}, random);
}

}  // namespace kivi::test
