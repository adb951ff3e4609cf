// SPDX-License-Identifier: Apache-2.0
// DecoderSpec: everything that tells one decoder-only transformer from another, as sizes and
// switches. One DecoderModel computes them all; engine/model/families/<family>.cpp fills a spec
// from a config.json.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/kv_page.h"

namespace kivi {

// How rotary frequencies are scaled beyond the trained context.
//   linear:  inv / factor (Chen et al. 2023)
//   dynamic: theta grows with the sequence once that is longer than the trained context (Rope in
//            kernels/backend.h has the formula)
//   llama3:  long waves / factor, short waves unchanged, smooth between (Llama 3.1's rule)
//   yarn:    the same idea between two channels found from beta_fast and beta_slow, and attention
//            is sharpened by attention_factor (Peng et al. 2023)
//   longrope: each frequency / a factor of its own, of one list where the engine's context is the
//            trained one, of another where it is longer; sharpened too (Ding et al. 2024)
enum class RopeScaling { none, linear, dynamic, llama3, yarn, longrope };

struct RopeSpec {
  double theta = 10000;
  int rotary_dim = 0;  // channels that turn; head_dim or a part of it
  RopeScaling scaling = RopeScaling::none;
  double factor = 1;
  int original_max_position_embeddings = 8192;       // dynamic, llama3, yarn, longrope
  double low_freq_factor = 1, high_freq_factor = 4;  // llama3
  double beta_fast = 32, beta_slow = 1;              // yarn: turns in the trained context
  bool truncate = true;                              // yarn: the two channels are whole numbers
  double attention_factor = 1;                       // multiplies cos and sin
  // What each frequency is divided by [rotary_dim / 2], where a file says it so (longrope's
  // short_factor, GGUF's rope_freqs); empty: nothing.
  std::vector<float> divisors;
  // longrope: the divisors of a context that is longer than the trained one (long_factor).
  std::vector<float> long_divisors;
};

struct DecoderSpec {
  int layers = 0;
  int hidden = 0;        // n
  int heads_q = 0;       // hq
  int heads_kv = 0;      // hk, divides hq
  int head_dim = 0;      // d
  int intermediate = 0;  // f
  int vocab = 0;
  int max_positions = 0;  // the context it was trained for, tokens
  // The context that its rotary scaling reaches (>= max_positions): what a user may ask for.
  int max_positions_scaled = 0;

  NormKind norm = NormKind::rms;  // layer: with bias
  double norm_eps = 1e-5;
  // false: x += attention(norm(x)); x += mlp(norm'(x)).
  // true (Falcon, GPT-J): x += attention(norm(x)) + mlp(norm(x)).
  bool parallel_attention = false;
  // Norms before a layer's blocks: 2 where attention and MLP have one each; 1 where a parallel
  // layer shares one.
  int norms_per_layer = 2;
  bool gated = true;  // down(act(gate(h)) * up(h)); else down(act(up(h)))
  Activation activation = Activation::silu;
  bool qkv_bias = false, output_bias = false, mlp_bias = false;
  // The cache's rotation (KvFormat::rotation): queries, keys and values are multiplied by a
  // Hadamard matrix, and the output matrix undoes it. No property of the checkpoint.
  bool rotated_heads = false;
  bool qk_norm = false;  // each head of q and of k is normed (rms, norm_eps) before it turns
  RopeSpec rope;
  int sliding_window = 0;        // tokens; 0: none
  std::vector<bool> windowed;    // [layers], where the window holds; empty: in all of them
  bool tied_embeddings = false;  // logits come from the embedding matrix

  int query_size() const { return heads_q * head_dim; }                    // hq d
  int kv_size() const { return 2 * heads_kv * head_dim; }                  // 2 hk d
  int qkv_size() const { return query_size() + kv_size(); }                // (hq + 2 hk) d
  int up_size() const { return gated ? 2 * intermediate : intermediate; }  // 2 f or f
  // Tokens that a layer attends to, itself included; 0: all.
  int window_of(int layer) const {
    return windowed.empty() || windowed[size_t(layer)] ? sliding_window : 0;
  }
  KvShape kv_shape() const { return {layers, heads_kv, head_dim}; }
};

}  // namespace kivi
