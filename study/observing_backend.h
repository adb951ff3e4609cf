// SPDX-License-Identifier: Apache-2.0
// ObservingBackend wraps a backend and shows the queries, keys and values of each layer to an
// observer, before attention and before the store read them. The observer may change the keys and
// values. Studies use it (study/kv_study.h); the server never does. Its thread rule is that of the
// wrapped backend.
#pragma once

#include <functional>
#include <map>
#include <memory>

#include "kernels/backend.h"

namespace kivi {

// The arguments of a kv_attend that is about to run. The tensors are in device memory.
struct AttentionCall {
  Tensor q;   // [t, hq d] query type
  Tensor kv;  // [t, 2 hk d] f16: keys after RoPE, then values
  const KvView& store;
  const StepView& step;
  int layer = 0;
  float scale = 1;
  DType out = DType::f32;  // type of the output
};

// May call the ops of the wrapped `backend` and upload to `kv`. Attention (if it has not run yet)
// and the store then read what was uploaded.
struct AttentionObserver {
  std::function<void(Backend& backend, const AttentionCall& call)> before_attend;
  std::function<void(Backend& backend, const Tensor& kv, const KvView& store, int layer)>
      before_append;
};

class ObservingBackend final : public Backend {
 public:
  // The observer lives as long as the backend.
  ObservingBackend(std::unique_ptr<Backend> inner, AttentionObserver observer)
      : inner_(std::move(inner)), observer_(std::move(observer)) {}

  DeviceInfo info() const override { return inner_->info(); }
  DType activation_type(DType weight) const override { return inner_->activation_type(weight); }
  DType query_type() const override { return inner_->query_type(); }
  bool multiplies(const WeightFormat& format) const override { return inner_->multiplies(format); }
  ProductInput product_input(const Tensor& x, const Weight& w, const Tensor& bias,
                             const Tensor& out) override {
    return inner_->product_input(x, w, bias, out);
  }
  int64_t product_scratch_bytes(const Weight& w, int64_t rows) const override {
    return inner_->product_scratch_bytes(w, rows);
  }
  void use_product_scratch(std::byte* memory, int64_t bytes) override {
    inner_->use_product_scratch(memory, bytes);
  }

  void upload(void* device, const void* source, size_t bytes) override {
    inner_->upload(device, source, bytes);
  }
  void download(void* target, const void* device, size_t bytes) override {
    inner_->download(target, device, bytes);
  }
  void fill_zero(void* device, size_t bytes) override { inner_->fill_zero(device, bytes); }
  void copy(void* to, const void* from, size_t bytes) override { inner_->copy(to, from, bytes); }
  void synchronize() override { inner_->synchronize(); }
  Result<HostMemory> allocate_host(size_t bytes) override { return inner_->allocate_host(bytes); }
  uint64_t copy_beside(std::span<const HostCopy> copies) override {
    return inner_->copy_beside(copies);
  }
  uint64_t copied_beside() override { return inner_->copied_beside(); }
  double seconds_beside() const override { return inner_->seconds_beside(); }
  void wait_beside(uint64_t batches) override { inner_->wait_beside(batches); }

  // Never recorded: a replay would pass the observer by.
  void run_recorded(uint64_t, const std::function<void()>& ops) override { ops(); }
  bool asynchronous() const override { return inner_->asynchronous(); }

  void mark(int index) override { inner_->mark(index); }
  double seconds_between(int from, int to) override { return inner_->seconds_between(from, to); }

  int logprobs_max() const override { return inner_->logprobs_max(); }
  void collect_samples(std::vector<SampledToken>& out) override { inner_->collect_samples(out); }

 private:
  Result<std::byte*> do_allocate(size_t bytes) override;
  void do_free(std::byte* data, size_t bytes) override;

  void do_embed(const Tensor& table, const Tensor& ids, const Tensor& out) override;
  void do_resolve_ids(const Tensor& ids, const Tensor& sampled) override;
  void do_add_norm(const Tensor& x, const Tensor& delta, const Tensor& weight, const Tensor& bias,
                   NormKind kind, float eps, const Operand& out) override;
  void do_add(const Tensor& x, const Tensor& delta) override;
  void do_matmul(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& out) override;
  void do_embed_quantized(const Weight& table, const Tensor& ids, const Tensor& out) override;
  void do_matmul_quantized(const Operand& x, const Weight& w, const Tensor& bias,
                           const Tensor& out) override;
  void do_rope(const Tensor& qkv, const Tensor& positions, const Rope& rope, const KvShape& shape,
               const Tensor& q, const Tensor& kv) override;
  void do_begin_step(const StepView& step, const KvView& store, int heads_q) override;
  void do_kv_attend(const Tensor& q, const Tensor& kv, const KvView& store, const StepView& step,
                    int layer, float scale, const Tensor& out) override;
  void do_kv_append(const Tensor& kv, const KvView& store, const StepView& step, int layer,
                    int layers) override;
  void do_gated_activation(const Tensor& gate_up, Activation activation,
                           const Operand& out) override;
  void do_activate(const Tensor& x, Activation activation) override;
  void do_gather_rows(const Tensor& x, const Tensor& rows, const Tensor& out) override;
  void do_add_rows(const Tensor& x, const Tensor& sums) override;
  void do_sample(const Tensor& logits, std::span<const SampleRow> rows, const Tensor& ids) override;

  std::unique_ptr<Backend> inner_;
  AttentionObserver observer_;
  std::map<std::byte*, Buffer> buffers_;  // what inner_ has allocated for us
};

}  // namespace kivi
