// SPDX-License-Identifier: Apache-2.0
// The benchmark's bytes and operations against values worked out by hand.
#include "bench/kernel_costs.h"

#include <catch2/catch.hpp>

namespace kivi {
namespace {

constexpr KvShape kLlama7b = {1, 32, 128};
constexpr KvLayout kF16 = {{KvKind::f16, 16, 16, 0, 0}, kLlama7b};
constexpr KvLayout kF8 = {{KvKind::f8, 8, 8, 0, 0}, kLlama7b};
constexpr KvLayout kKivi4 = {{KvKind::kivi, 4, 4, 32, 32}, kLlama7b};
constexpr KvLayout kKivi2 = {{KvKind::kivi, 2, 2, 32, 32}, kLlama7b};

}  // namespace

TEST_CASE("A layer holds b + 32 / G bits an element, and the residual in 16 bits") {
  // Llama-2-7B, bytes a token and layer: 16384 in f16, 8192 in fp8, 5120 and 3072 at 4 and 2 bits.
  CHECK(layer_bytes_held(kF16, 1000) == 16384 * 1000);
  CHECK(layer_bytes_held(kF8, 1000) == 8192 * 1000);
  // 4096 tokens, R 32: all keys are quantized, all values but 32 (8192 bytes a token in 16 bits).
  CHECK(layer_bytes_held(kKivi4, 4096) == 2560 * 4096 + 2560 * (4096 - 32) + 8192 * 32);
  CHECK(layer_bytes_held(kKivi2, 4096) == 1536 * 4096 + 1536 * (4096 - 32) + 8192 * 32);
  // One token less: 31 keys are in the residual as well.
  CHECK(layer_bytes_held(kKivi2, 4095) == 1536 * 4064 + 1536 * 4063 + 8192 * (31 + 32));
  CHECK(layer_bytes_held(kKivi2, 31) == 2 * 8192 * 31);
  // Mixed bits: keys at 4, values at 2.
  const KvLayout mixed = {{KvKind::kivi, 4, 2, 32, 32}, kLlama7b};
  CHECK(layer_bytes_held(mixed, 64) == 2560 * 64 + 1536 * 32 + 8192 * 32);
  // Falcon-7B: one KV head of 64 channels, G 64: 40 bytes a token at 2 bits.
  const KvLayout falcon = {{KvKind::kivi, 2, 2, 64, 128}, {1, 1, 64}};
  CHECK(layer_bytes_held(falcon, 1280) == 20 * 1280 + 20 * (1280 - 128) + 128 * 128);
}

TEST_CASE("Decode attention reads the store and its own row, and multiplies each pair twice") {
  const OpCost cost = attend_cost(kF16, 32, 1023, 1);
  CHECK(cost.bytes == 16384 * 1023 + 16384);
  CHECK(cost.flops == 4.0 * 32 * 128 * 1024);  // q K^T and P V, 2 a multiply-add
  CHECK(attend_cost(kKivi2, 32, 4095, 1).bytes == layer_bytes_held(kKivi2, 4095) + 16384);
}

TEST_CASE("A prompt's attention is causal") {
  // Rows 0, 1, 2 upon 10 cached: 11 + 12 + 13 pairs.
  CHECK(attend_cost(kF16, 32, 10, 3).flops == 4.0 * 32 * 128 * 36);
  CHECK(attend_cost(kF16, 32, 0, 4096).flops == 4.0 * 32 * 128 * 4096 * 4097 / 2);
}

TEST_CASE("Append reads and writes what changes its place") {
  // f16: 16384 read and written a token.
  CHECK(append_cost(kF16, 77, 1).bytes == 2 * 16384);
  CHECK(append_cost(kF8, 77, 5).bytes == 5 * (16384 + 8192));
  // A step in the middle of R: the row is read and written, one value leaves the residual.
  CHECK(append_cost(kKivi2, 100, 1).bytes == 16384 + 16384 + (8192 + 1536));
  // It completes R = 32 keys (127 -> 128): 31 leave the residual, the new one never enters it.
  CHECK(append_cost(kKivi2, 127, 1).bytes ==
        16384 + 8192 /* V row */ + (8192 + 1536) + 31 * 8192 + 32 * 1536);
  // A prompt of 64: 64 keys and 32 values are quantized at once, 32 values stay in 16 bits.
  CHECK(append_cost(kKivi2, 0, 64).bytes == 64 * 16384 + 64 * 1536 + 32 * 1536 + 32 * 8192);
  // Steps add up to what the store holds in the end, apart from what passed through the residual.
  int64_t codes = 0;
  for (int past = 0; past < 200; ++past) {
    const int64_t moved = append_cost(kKivi4, past, 1).bytes - 16384;
    codes += moved;
  }
  const int64_t held = layer_bytes_held(kKivi4, 200);
  // Every key but each 32nd, and every value, was written to the residual in 16 bits; 6 * 31 keys
  // and 168 values were read from it again.
  const int64_t residual_now = 8192 * (8 + 32);
  CHECK(codes == held - residual_now + 8192 * ((200 - 6) + 200) + 8192 * (6 * 31 + 168));
}

TEST_CASE("Dense ops of Llama-2-7B at 64 rows") {
  // q|k|v: [64, 4096] x [12288, 4096] in 16 bits.
  const OpCost qkv = matmul_cost(64, 4096, 12288, 2, 2, 2);
  CHECK(qkv.bytes == 64 * 4096 * 2 + int64_t(12288) * 4096 * 2 + 64 * 12288 * 2);
  CHECK(qkv.flops == 2.0 * 64 * 4096 * 12288);
  CHECK(matmul_cost(1, 4096, 32000, 2, 2, 4).bytes == 8192 + int64_t(32000) * 8192 + 128000);
  CHECK(embed_cost(64, 4096, 2, 2).bytes == 64 * (4 + 16384));
  CHECK(norm_cost(64, 4096, 2, 2, false).bytes == 2 * 64 * 8192 + 8192);
  CHECK(norm_cost(64, 4544, 2, 2, true).bytes == 2 * 64 * 9088 + 2 * 9088);
  CHECK(add_norm_cost(64, 4096, 2, 2, false).bytes == 4 * 64 * 8192 + 8192);
  CHECK(add_cost(3, 10, 4).bytes == 360);
  CHECK(rope_cost(64, 32, 8, 128, 2, 2).bytes == 64 * (4 + 6144 * 2 + 4096 * 2 + 2048 * 2));
  CHECK(gated_activation_cost(64, 11008, 2).bytes == 3 * 64 * 11008 * 2);
  CHECK(quantized_output(gated_activation_cost(64, 11008, 2), 64, 11008, 2).bytes ==
        64 * (5 * 11008 + 4));
  CHECK(activate_cost(64, 18176, 4).bytes == 2 * 64 * 18176 * 4);
  CHECK(gather_rows_cost(7, 4096, 2).bytes == 7 * (4 + 16384));
  CHECK(sample_cost(64, 32000).bytes == 64 * 128000);
}

}  // namespace kivi
