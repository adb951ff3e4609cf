// SPDX-License-Identifier: Apache-2.0
// DecoderModel: one forward pass of a decoder-only transformer, for every family, by the switches
// of its DecoderSpec. All buffers are taken once, here; the structs show every shape. Engine thread
// only.
//
// Letters in shapes: t rows of the step, n hidden, hq and hk query and KV heads, d channels a head,
// f intermediate, m gathered rows. `a` is the backend's activation type.
#pragma once

#include <cstdint>
#include <memory>

#include "engine/model/decoder_spec.h"
#include "engine/model/weights.h"
#include "kernels/backend.h"

namespace kivi {

class DecoderModel {
 public:
  // The largest step: rows of the layers, and rows of logits at a time.
  struct Limits {
    int rows = 0;
    int logits_rows = 0;
    int64_t product_scratch = 0;  // bytes (Backend::product_scratch_bytes)
  };

  // Bytes that create() allocates. Exact.
  static int64_t workspace_bytes(const Backend& backend, const DecoderSpec& spec, DType weight,
                                 const Limits& limits);

  // The backend must outlive the model.
  static Result<std::unique_ptr<DecoderModel>> create(Backend& backend, const DecoderSpec& spec,
                                                      DecoderWeights weights, const Limits& limits);

  // All layers for all rows of the step; the store gets their keys and values. At most limits.rows
  // rows.
  void forward(const StepView& step, const KvView& store);
  // The same for layers [begin, end) alone. hidden [t, n] a, the residual stream, is what the layer
  // before `begin` left there, and gets what layer end - 1 makes of it. Layer 0 embeds the step's
  // ids first.
  void forward_layers(const StepView& step, const KvView& store, int begin, int end,
                      const Tensor& hidden);

  // Logits of rows of the last forward(), any number of times. rows [m] i32 on the device,
  // 1 <= m <= limits.logits_rows. The result, [m, vocab] f32, is overwritten by the next call.
  Tensor logits(const Tensor& rows);

  // Adds the final hidden states of the last forward()'s rows [begin, begin + count), which are
  // what logits are made of, to hidden_sums(sum).
  void add_hidden(int64_t begin, int64_t count, int64_t sum);
  // Sums [n] f32 for add_hidden, 0 <= sum < limits.logits_rows. clear_hidden() makes one 0.
  Tensor hidden_sums(int64_t sum) const;
  void clear_hidden(int64_t sum);

  // The first m rows of what logits() wrote last: [m, vocab] f32.
  Tensor logits_of(int64_t m) const { return all_.logits.slice_rows(0, m); }

  const DecoderSpec& spec() const { return spec_; }

 private:
  // Sized for limits; a step uses the first t (or m) rows of each.
  struct Activations {
    Tensor x;          // [t, n] a, the residual stream
    Tensor h;          // [t, n] a, normed; may hold quantized rows, as h_mlp and gated may
    Tensor h_mlp;      // [t, n] a, only where a parallel layer has a norm of its own for the MLP
    Tensor qkv;        // [t, (hq + 2 hk) d] a
    Tensor q;          // [t, hq d] query type
    Tensor kv;         // [t, 2 hk d] f16
    Tensor attention;  // [t, hq d] a
    Tensor up;         // [t, 2 f] a (f where not gated)
    Tensor gated;      // [t, f] a, only where gated
    Tensor delta;      // [t, n] a, what a block adds to x
    Tensor gathered;   // [m, n] a
    Tensor normed;     // [m, n] a
    Tensor logits;     // [m, vocab] f32
    Tensor sums;       // [m, n] f32, of final hidden states
    std::byte* product_scratch = nullptr;  // limits.product_scratch bytes
  };

  DecoderModel(Backend& backend, const DecoderSpec& spec, DecoderWeights weights);

  // Lays the activations out from `base` on; returns the bytes they take.
  static int64_t lay_out(Activations& a, std::byte* base, const Backend& backend,
                         const DecoderSpec& spec, DType weight, const Limits& limits);

  // The step as the attention of a layer sees it.
  StepView with_window(const StepView& step, int layer) const;
  // What an op writes into `rows`, so that the product by W reads it: the rows, or quantized rows
  // in their place if every part of W would round the rows to them. bias and out: of the product.
  Operand input_of(const Tensor& rows, const WeightMatrix& w, const Tensor& bias,
                   const Tensor& out) const;
  // The same for the norm before a layer's attention, and for the norm before its MLP.
  Operand attention_input(const LayerWeights& w) const;
  Operand mlp_input(const LayerWeights& w) const;
  // out = x W^T (+ bias), part by part.
  void multiply(const Operand& x, const WeightMatrix& w, const Tensor& bias, const Tensor& out);
  // h -> delta, and the step's keys and values into the store. `begin` and `end`: layers of this
  // pass.
  void attention(int layer, int begin, int end, const Operand& input, const StepView& step,
                 const KvView& store);
  // input -> delta.
  void mlp(const LayerWeights& w, const Operand& input);
  // x += delta, then h = norm(x) with the given weights.
  void add_norm(const Tensor& weight, const Tensor& bias, const Operand& h);

  Backend& backend_;
  const DecoderSpec spec_;
  const DecoderWeights weights_;
  const Rope rope_;
  Buffer memory_;
  Activations all_;   // at their full size
  Activations step_;  // the rows of the current step
};

}  // namespace kivi
