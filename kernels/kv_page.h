// SPDX-License-Identifier: Apache-2.0
// The layout of the key-value store. This header computes where every byte is, for the host, the
// CPU kernels and the CUDA kernels. docs/design/kv-format.md explains the format with drawings and
// says which tokens are quantized (section 2).
//
// The store has three regions, carved from one allocation at start-up:
//
// clang-format off
//   pages     [page][layer][kv head]          blocks of KvLayout::block_bytes() of the layer
//   slots     [slot][layer][kv head]          slabs, f16: residual K rows [R][d], residual V rows [R][d],
//                                             sink K rows [S][d], sink V rows [S][d]
//   staging   [layer][staging page][kv head]  blocks of 64 tokens, f16: prompts of prefill mode `exact`
// clang-format on
//
// A page holds `page_tokens` consecutive tokens of one sequence: 64, or 128 if G = 128. All layers
// of a page are one contiguous piece, so a page can be copied to another memory as it is. A block
// is contiguous, so that one bulk copy brings it on chip:
//
//   K codes | K parameters | V codes | V parameters
//
// Order of codes (section 4 of that page). Codes lie in the order in which a warp reads operand A
// of mma.m16n8k16. A GPU lane reads its codes as whole 16-byte words and never shuffles:
//
//   keys:   operand A is a tile of 16 tokens (rows) x 16 channels (k);     S^T = K Q^T
//   values: operand A is a tile of 16 channels (rows) x 16 tokens (k);     O^T = V^T P^T
//
// Lane l = 4 g + t of the warp owns rows g and g + 8 of a tile. Of every 16 k-positions it owns the
// pairs (2t, 2t + 1) and (2t + 8, 2t + 9). A 32-bit word holds one row's codes of consecutive
// k-tiles. Its low 16 bits hold the even k-positions and its high 16 bits the odd ones; pair s (two
// pairs a k-tile) is at bit b * s of each half. Masking a word with 0x0003'0003 << (b * s)
// therefore yields both codes of one fragment register. For f8, a word holds two pairs in byte
// order, as cvt.e4m3x2 takes them. The words of a lane form one sequence. Four of them at a time
// lie side by side, lane by lane (`lane_word`), so the 16-byte loads of a warp have no bank
// conflicts.
//
// Parameters (scale and minimum, of 16 or 8 bits each) lie in planes ordered in the same way
// (`lane_parameter`). Keys have, for each group of tokens, the d scales and then the d minima.
// Values have, for each 64 tokens and channel group, the 64 scales and then the 64 minima.
// kernels/kv_codec.h says what parameters of 8 bits mean.
//
// f16 pages, staging blocks and the residual are rows of d halves. The 16-byte chunks of a row are
// permuted by XOR with (row % 8), so that ldmatrix has no bank conflicts.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/verify.h"
#include "kernels/half.h"
#include "kernels/kv_layer_bits.h"

namespace kivi {

enum class KvKind : uint8_t { f16, f8, kivi };

// How the store keeps keys and values. `group` is G, `residual` is R and `sinks` is S, in tokens;
// all are 0 for f16 and f8. Bits are 2, 4 for kivi, chosen for K and V separately; 16 and 8
// otherwise.
struct KvFormat {
  KvKind kind = KvKind::f16;
  int key_bits = 16;
  int value_bits = 16;
  int group = 0;
  int residual = 0;
  // The first S tokens of a sequence stay in 16 bits and belong to no group.
  int sinks = 0;
  int parameter_bits = 16;  // of a scale and of a minimum: 16, or 8 (kivi alone)
  // A decode subtracts from the logits of quantized keys what the noise of the keys adds on average
  // (docs/design/kv-format.md, section 9).
  bool key_bias = false;
  // Queries, keys and values are multiplied by a Hadamard matrix before they are stored (section
  // 10 of that page). head_dim is a power of two.
  bool rotation = false;

  friend constexpr bool operator==(const KvFormat&, const KvFormat&) = default;
};

// The sizes of one model's cache: layers, KV heads in a layer, channels in a head.
struct KvShape {
  int layers = 0;
  int heads = 0;
  int head_dim = 0;

  friend constexpr bool operator==(const KvShape&, const KvShape&) = default;
};

enum class Side : uint8_t { key, value };

// The *paged position* of a token is its position less S. Tokens of a negative paged position are
// sinks. Pages, groups and the residual are counted in paged positions.
//
// Return how many of T cached tokens have their key (value) in pages. These are the tokens of the
// paged positions from 0 on. For f16 and f8 they are all tokens.
KIVI_HOST_DEVICE constexpr int keys_paged(const KvFormat& f, int tokens) {
  if (f.kind != KvKind::kivi) return tokens;
  const int rest = tokens - f.sinks;
  return rest > 0 ? rest - rest % f.residual : 0;
}
KIVI_HOST_DEVICE constexpr int values_paged(const KvFormat& f, int tokens) {
  if (f.kind != KvKind::kivi) return tokens;
  const int rest = tokens - f.sinks - f.residual;
  return rest > 0 ? rest : 0;
}
KIVI_HOST_DEVICE constexpr int tokens_paged(const KvFormat& f, int tokens, Side side) {
  return side == Side::key ? keys_paged(f, tokens) : values_paged(f, tokens);
}

// The position of one code: bits [bit, bit + b) of the 32-bit word `word` of the codes region.
struct CodePosition {
  int word;
  int bit;
};

// Returns the offset of word `i` of the sequence of lane `lane`. Four words of a lane lie side by
// side, lane by lane.
KIVI_HOST_DEVICE constexpr int lane_word(int i, int lane) {
  return ((i / 4) * 32 + lane) * 4 + i % 4;
}

// Returns the offset of position x in a parameter plane. 0 <= x < n, where n is d for keys and 64
// for values. A lane's pairs (2t, 2t + 1) and (2t + 8, 2t + 9) of all 16-tiles lie side by side,
// eight halves at a time.
KIVI_HOST_DEVICE constexpr int lane_parameter(int x) {
  const int tile = x / 16, r = x % 16;
  const int t = (r % 8) / 2;
  const int i = tile * 4 + (r / 8) * 2 + r % 2;
  return ((i / 8) * 4 + t) * 8 + i % 8;
}

// Returns the offset of channel c in a swizzled f16 row of d channels, in halves from the start of
// the row. Chunks of 8 halves are permuted within runs of 8 chunks. If d is not a multiple of 64,
// the last run is shorter and permutes within itself; its length is a power of two because d % 16
// == 0 and d % 64 != 48. Row 0 is not permuted.
KIVI_HOST_DEVICE constexpr int swizzled_channel(int row, int c, int d) {
  const unsigned chunk = unsigned(c) / 8;
  const unsigned left = unsigned(d) / 8 - chunk / 8 * 8;
  return int((chunk ^ (unsigned(row) & ((left < 8 ? left : 8) - 1))) * 8 + unsigned(c) % 8);
}

// Returns the position of the code at row `row` (0 to 15) and k-position `k`. Keys and values share
// this arithmetic.
//   words_per_row: words that hold one row's codes of one lane (over all k-tiles of the sequence)
//   first_word:    words of the lane's sequence before this tile
//   row_inner:     the words of rows g and g + 8 alternate (keys); else all words of row g come
//   first
KIVI_HOST_DEVICE constexpr CodePosition fragment_position(int first_word, int words_per_row,
                                                          int bits, int row, int k,
                                                          bool row_inner) {
  const int pairs_per_word = 16 / bits;  // pairs of codes in a 32-bit word
  const int r = k % 16;
  const int lane = (row % 8) * 4 + (r % 8) / 2;
  const int pair = (k / 16) * 2 + r / 8;  // of this lane and row, over the k-tiles
  const int j = pair / pairs_per_word;    // word of the row
  const int slot = pair % pairs_per_word;
  const int half = r % 2;
  const int i = first_word + (row_inner ? j * 2 + row / 8 : (row / 8) * words_per_row + j);
  const int bit = bits == 8 ? slot * 16 + half * 8 : half * 16 + slot * bits;
  return {lane_word(i, lane), bit};
}

// Sizes and offsets inside the blocks of one format and shape. Offsets are in bytes unless a
// comment says otherwise. Every region starts on a multiple of 16.
//
// Layers of a store may have codes of different bits. They share everything else of the format.
// Then ask `of_layer(layer)` for what concerns a block: its bytes, its offsets, the positions of
// its codes. Functions that concern a page, a slot or a token hold for the whole store.
struct KvLayout {
  KvFormat format;
  KvShape shape;
  KvLayerBits layer_bits = {};  // empty: all layers have the bits of `format`

  // Returns the layout of the blocks of one layer, as of a store whose layers are all like it.
  constexpr KvLayout of_layer(int layer) const {
    KvLayout one{format, shape, {}};
    if (layer_bits.empty()) return one;
    one.format.key_bits = layer_bits.key_bits(layer);
    one.format.value_bits = layer_bits.value_bits(layer);
    return one;
  }

  KIVI_HOST_DEVICE constexpr int page_tokens() const { return format.group > 64 ? 128 : 64; }
  // Returns the pages that `tokens` cached tokens of one sequence take. Sinks, and tokens whose key
  // is still in the residual, need no page. (Values are never quantized beyond keys.)
  KIVI_HOST_DEVICE constexpr int pages_for(int tokens) const {
    return (keys_paged(format, tokens) + page_tokens() - 1) / page_tokens();
  }
  // Returns the largest number of cached tokens that `pages` pages allow.
  KIVI_HOST_DEVICE constexpr int64_t tokens_within(int64_t pages) const {
    const int64_t quantized = pages * page_tokens();
    if (format.kind != KvKind::kivi) return quantized;
    return format.sinks + quantized / format.residual * format.residual + format.residual - 1;
  }
  KIVI_HOST_DEVICE constexpr int key_groups() const {  // token groups a page
    return format.kind == KvKind::kivi ? page_tokens() / format.group : 0;
  }
  KIVI_HOST_DEVICE constexpr int value_groups() const {  // channel groups a token
    return format.kind == KvKind::kivi ? shape.head_dim / format.group : 0;
  }

  // Return the number of a lane's 32-bit words that hold one row's codes. If head_dim is 96, half
  // of the second word of a 2-bit row is unused.
  KIVI_HOST_DEVICE constexpr int key_words_per_row() const {
    return key_words_per_row(format.key_bits);
  }
  KIVI_HOST_DEVICE constexpr int key_words_per_row(int bits) const {
    return (shape.head_dim * bits + 127) / 128;
  }
  KIVI_HOST_DEVICE constexpr int value_words_per_row() const {  // of 64 tokens
    return 64 * format.value_bits / 128;
  }

  // Bytes of one scale and one minimum.
  KIVI_HOST_DEVICE constexpr int parameter_pair_bytes() const { return format.parameter_bits / 4; }

  KIVI_HOST_DEVICE constexpr int key_codes_bytes() const {
    if (format.kind == KvKind::f16) return page_tokens() * shape.head_dim * 2;
    return key_codes_bytes(format.key_bits);
  }
  KIVI_HOST_DEVICE constexpr int key_codes_bytes(int bits) const {  // not for f16
    return page_tokens() / 16 * 2 * key_words_per_row(bits) * 32 * 4;
  }
  KIVI_HOST_DEVICE constexpr int key_parameters_bytes() const {
    return key_groups() * shape.head_dim * parameter_pair_bytes();
  }
  KIVI_HOST_DEVICE constexpr int value_codes_bytes() const {
    return value_codes_bytes(format.value_bits);
  }
  KIVI_HOST_DEVICE constexpr int value_codes_bytes(int bits) const {
    return page_tokens() * shape.head_dim * bits / 8;
  }
  KIVI_HOST_DEVICE constexpr int value_parameters_bytes() const {
    return page_tokens() * value_groups() * parameter_pair_bytes();
  }

  KIVI_HOST_DEVICE constexpr int codes_offset(Side side) const {
    return side == Side::key ? key_codes_offset() : value_codes_offset();
  }
  KIVI_HOST_DEVICE constexpr int key_codes_offset() const { return 0; }
  KIVI_HOST_DEVICE constexpr int key_parameters_offset() const { return key_codes_bytes(); }
  KIVI_HOST_DEVICE constexpr int value_codes_offset() const {
    return key_parameters_offset() + key_parameters_bytes();
  }
  KIVI_HOST_DEVICE constexpr int value_parameters_offset() const {
    return value_codes_offset() + value_codes_bytes();
  }
  KIVI_HOST_DEVICE constexpr int block_bytes() const {
    return value_parameters_offset() + value_parameters_bytes();
  }
  // Returns where the blocks of `layer` begin in a page: the bytes of all layers before it. This is
  // the one place that says so, and `layer` may be the number of layers.
  constexpr int64_t layer_offset(int layer) const {
    if (layer_bits.empty()) return int64_t(block_bytes()) * layer * shape.heads;
    const int64_t narrow = key_parameters_bytes() + value_parameters_bytes() + key_codes_bytes(2) +
                           value_codes_bytes(2);
    const int64_t more_keys = key_codes_bytes(4) - key_codes_bytes(2);
    const int64_t more_values = value_codes_bytes(4) - value_codes_bytes(2);
    return (layer * narrow + layer_bits.wide_keys_before(layer) * more_keys +
            layer_bits.wide_values_before(layer) * more_values) *
           shape.heads;
  }
  // Bytes of one page in all layers and heads.
  constexpr int64_t page_bytes() const { return layer_offset(shape.layers); }
  // Of these, scales and minima.
  constexpr int64_t page_parameters_bytes() const {
    return int64_t(key_parameters_bytes() + value_parameters_bytes()) * shape.layers * shape.heads;
  }

  // A slab: residual K rows, residual V rows, sink K rows, sink V rows; f16, swizzled by the row
  // within its part.
  KIVI_HOST_DEVICE constexpr int row_bytes() const { return shape.head_dim * 2; }
  KIVI_HOST_DEVICE constexpr int residual_offset(Side side) const {
    return side == Side::key ? 0 : format.residual * row_bytes();
  }
  KIVI_HOST_DEVICE constexpr int sinks_offset(Side side) const {
    return (2 * format.residual + (side == Side::key ? 0 : format.sinks)) * row_bytes();
  }
  KIVI_HOST_DEVICE constexpr int slab_bytes() const {
    return 2 * (format.residual + format.sinks) * row_bytes();
  }
  KIVI_HOST_DEVICE constexpr int64_t slot_bytes() const {  // all layers and heads
    return int64_t(slab_bytes()) * shape.layers * shape.heads;
  }

  KIVI_HOST_DEVICE constexpr int64_t slot_sinks_bytes() const {  // of these, sinks
    return int64_t(2 * format.sinks * row_bytes()) * shape.layers * shape.heads;
  }

  // Staging block: 64 tokens, K rows, then V rows, f16, swizzled.
  static constexpr int kStagingTokens = 64;
  KIVI_HOST_DEVICE static constexpr int staging_pages_for(int tokens) {
    return (tokens + kStagingTokens - 1) / kStagingTokens;
  }
  KIVI_HOST_DEVICE constexpr int staging_offset(Side side) const {
    return side == Side::key ? 0 : kStagingTokens * row_bytes();
  }
  KIVI_HOST_DEVICE constexpr int staging_block_bytes() const {
    return 2 * kStagingTokens * row_bytes();
  }
  KIVI_HOST_DEVICE constexpr int64_t staging_page_bytes() const {
    return int64_t(staging_block_bytes()) * shape.layers * shape.heads;
  }

  // Returns the position of the key code of `token` (0 <= token < page_tokens) and `channel`. Keys
  // have 2, 4 or 8 bits here.
  KIVI_HOST_DEVICE constexpr CodePosition key_code(int token, int channel) const {
    const int words_per_row = key_words_per_row();
    return fragment_position((token / 16) * 2 * words_per_row, words_per_row, format.key_bits,
                             token % 16, channel, /*row_inner=*/true);
  }
  // The same for values. 64 tokens are one run of 4 k-tiles; a 128-token page holds two runs.
  KIVI_HOST_DEVICE constexpr CodePosition value_code(int token, int channel) const {
    const int words_per_row = value_words_per_row();
    const int tiles = shape.head_dim / 16;
    const int first = ((token / 64) * tiles + channel / 16) * 2 * words_per_row;
    return fragment_position(first, words_per_row, format.value_bits, channel % 16, token % 64,
                             /*row_inner=*/false);
  }

  // Returns the index of the scale of a key group, in parameters from the start of the region. Its
  // minimum is `head_dim` parameters later.
  KIVI_HOST_DEVICE constexpr int key_scale(int token, int channel) const {
    return (token / format.group) * 2 * shape.head_dim + lane_parameter(channel);
  }
  KIVI_HOST_DEVICE constexpr int key_minimum(int token, int channel) const {
    return key_scale(token, channel) + shape.head_dim;
  }
  // The same for a value group. Its minimum is 64 parameters later.
  KIVI_HOST_DEVICE constexpr int value_scale(int token, int channel) const {
    return ((token / 64) * value_groups() + channel / format.group) * 128 +
           lane_parameter(token % 64);
  }
  KIVI_HOST_DEVICE constexpr int value_minimum(int token, int channel) const {
    return value_scale(token, channel) + 64;
  }

  friend constexpr bool operator==(const KvLayout&, const KvLayout&) = default;
};

// The store as the kernels see it. The pointers are device pointers, aligned to 256 bytes.
struct KvView {
  KvLayout layout;
  std::byte* pages = nullptr;
  std::byte* slots = nullptr;
  std::byte* staging = nullptr;
  // Memory that one op may use and no op keeps: a prompt chunk's history of one layer in 16 bits.
  std::byte* scratch = nullptr;
  int64_t page_count = 0;
  int64_t slot_count = 0;
  int64_t staging_page_count = 0;
  int64_t scratch_bytes = 0;  // 0: no such memory
  int staging_layer = 0;      // the layer with which `staging` begins
  int pages_layer = 0;        // the layer with which `pages` begins
  int64_t page_stride = 0;    // bytes from a page to the next; 0: those of layers that are alike

  // Returns this store as an op sees it that works on `layer`, and on layers behind it that have
  // the same bits: `layout` is that of their blocks.
  KvView of_layer(int layer) const {
    KvView view = *this;
    if (layout.layer_bits.empty()) return view;
    view.layout = layout.of_layer(layer);
    view.pages = pages + layout.layer_offset(layer);
    view.pages_layer = layer;
    view.page_stride = layout.page_bytes();
    return view;
  }

  KIVI_HOST_DEVICE int64_t page_bytes() const {
    if (page_stride > 0) return page_stride;
    return int64_t(layout.block_bytes()) * layout.shape.layers * layout.shape.heads;
  }
  // If the layers of the store differ in their bits, call this on the result of `of_layer`.
  KIVI_HOST_DEVICE std::byte* page_block(int layer, int64_t page, int head) const {
#ifndef __CUDA_ARCH__
    KIVI_VERIFY(layout.layer_bits.empty());
#endif
    return pages + page * page_bytes() +
           (int64_t(layer - pages_layer) * layout.shape.heads + head) * layout.block_bytes();
  }
  KIVI_HOST_DEVICE std::byte* slab(int layer, int64_t slot, int head) const {
    return slots +
           ((slot * layout.shape.layers + layer) * layout.shape.heads + head) * layout.slab_bytes();
  }
  KIVI_HOST_DEVICE std::byte* staging_block(int layer, int64_t page, int head) const {
    return staging +
           (((layer - staging_layer) * staging_page_count + page) * layout.shape.heads + head) *
               layout.staging_block_bytes();
  }
};

// The bytes that one sequence of T tokens holds in all layers. Admission counts them, and /metrics
// reports them.
struct KvBytes {
  int64_t codes = 0;       // codes of the pages (for f16 and f8: the values themselves)
  int64_t parameters = 0;  // scales and minima
  int64_t residual = 0;
  int64_t sinks = 0;
  friend constexpr bool operator==(const KvBytes&, const KvBytes&) = default;
};

// The block sizes of docs/design/kv-format.md, section 6 (head_dim 128, G 32).
static_assert(KvLayout{{KvKind::kivi, 2, 2, 32, 32}, {1, 1, 128}}.block_bytes() == 6 * 1024);
static_assert(KvLayout{{KvKind::kivi, 4, 4, 32, 32}, {1, 1, 128}}.block_bytes() == 10 * 1024);
static_assert(KvLayout{{KvKind::f16, 16, 16, 0, 0}, {1, 1, 128}}.block_bytes() == 32 * 1024);
static_assert(KvLayout{{KvKind::kivi, 2, 2, 32, 32, 32, 8}, {1, 1, 128}}.block_bytes() == 5 * 1024);

}  // namespace kivi
