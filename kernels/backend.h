// SPDX-License-Identifier: Apache-2.0
// Backend: one device that computes. It offers memory, an order of work, and the ops of a decoder
// step.
//
// The public op functions check shapes and types and then call the private do_*. A wrong shape is
// our own mistake, so it fails a KIVI_VERIFY. CpuBackend defines every op, and CudaBackend must
// agree with it.
//
// Types:
// - `a` is the activation type, activation_type(weight type). It is f32 on the CPU and the weight
//   type (bf16 or f16) on CUDA.
// - `w` is the weight type: f32, f16 or bf16 on the CPU, f16 or bf16 on CUDA.
// - Queries that enter attention have query_type(): f32 on the CPU, f16 on CUDA.
// - New keys and values are f16 on every device (to_f16_saturated).
// - Sums are accumulated in f32 everywhere.
// - Where an op writes an Operand, it writes rows of type `a`, or rounds these rows to codes.
//
// Order: ops run in the order of the calls. `synchronize` also waits for copies beside them. Only
// `download`, `synchronize`, `seconds_between` and `collect_samples` wait for the device. Threads:
// one thread at a time uses a Backend.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"
#include "kernels/buffer.h"
#include "kernels/operand.h"
#include "kernels/sampling.h"
#include "kernels/step_view.h"
#include "kernels/tensor.h"
#include "kernels/weight.h"

namespace kivi {

enum class NormKind { rms, layer };
enum class Activation { silu, gelu, gelu_tanh };

// Rotary embedding in NeoX style (Su et al. 2021, as in Hugging Face's rotate_half). Channel i of
// the first half of `rotary_dim` is rotated together with channel i + rotary_dim / 2.
struct Rope {
  Tensor inverse_frequencies;  // [rotary_dim / 2] f32, device; scaling is already applied
  int rotary_dim = 0;          // <= head_dim; channels beyond pass through
  float attention_factor = 1;  // multiplies cos and sin (yarn's mscale)
  // Dynamic NTK scaling (bloc97, emozilla 2023; as in Transformers). If the sequence of a row has
  // L = `lengths[row]` tokens and L > `trained`, frequency i is multiplied by
  // r^(-2 i / (rotary_dim - 2)), where r = dynamic_factor L / trained - (dynamic_factor - 1).
  // 0 = no such scaling, and `lengths` is not read.
  float dynamic_factor = 0;
  int trained = 0;
  Tensor lengths;  // [t] i32, device
  // After the rotary embedding, every head of q, k and v is multiplied by the Hadamard matrix of
  // Sylvester's construction, divided by sqrt(head_dim) (docs/design/kv-format.md, section 10).
  // head_dim is a power of two.
  bool hadamard = false;
  // Before the rotary embedding, each head x of q and of k becomes x / sqrt(mean(x^2) + norm_eps)
  // times its weight (Qwen3). [head_dim] w each; both empty = no such norm.
  Tensor q_norm, k_norm;
  float norm_eps = 0;
};

struct DeviceInfo {
  std::string name;          // "AMD EPYC ... (AVX2, 2 threads)", "NVIDIA H100 80GB HBM3"
  std::string kind;          // "cpu", "cuda"
  int64_t memory_total = 0;  // bytes
  int64_t memory_free = 0;
};

// Host memory for copies beside the ops. It is page-locked where the device wants it.
using HostMemory = std::unique_ptr<std::byte, void (*)(std::byte*)>;

// A copy between host memory (HostMemory) and memory of the device.
struct HostCopy {
  void* to = nullptr;
  const void* from = nullptr;
  size_t bytes = 0;
};

class Backend;

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

// Sees the queries, keys and values of each layer before attention and before the store read them.
// May call ops of `backend`, which it does not see, and upload to `kv`. Attention (if it has not
// run yet) and the store then read what was uploaded.
struct AttentionObserver {
  std::function<void(Backend& backend, const AttentionCall& call)> before_attend;
  std::function<void(Backend& backend, const Tensor& kv, const KvView& store, int layer)>
      before_append;
};

// What a device implements of each op, declared once for all devices: Backend is abstract in it,
// and a device overrides it. Backend's public op of the same name says what each does. Backend has
// checked the arguments by then, and there is at least one row.
// - do_add_norm: for a plain norm, `delta` is empty.
// - do_embed_quantized, do_matmul_quantized: only called if the device multiplies the format.
// - do_begin_step: the store's layers may differ in their bits. The other ops get a store whose
//   layers are alike (KvView::of_layer).
#define KIVI_BACKEND_OPS(prefix, suffix)                                                           \
  prefix void do_embed(const Tensor& table, const Tensor& ids, const Tensor& out) suffix;          \
  prefix void do_resolve_ids(const Tensor& ids, const Tensor& sampled) suffix;                     \
  prefix void do_add_norm(const Tensor& x, const Tensor& delta, const Tensor& weight,              \
                          const Tensor& bias, NormKind kind, float eps, const Operand& out)        \
      suffix;                                                                                      \
  prefix void do_add(const Tensor& x, const Tensor& delta) suffix;                                 \
  prefix void do_matmul(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& out)   \
      suffix;                                                                                      \
  prefix void do_embed_quantized(const Weight& table, const Tensor& ids, const Tensor& out)        \
      suffix;                                                                                      \
  prefix void do_matmul_quantized(const Operand& x, const Weight& w, const Tensor& bias,           \
                                  const Tensor& out) suffix;                                       \
  prefix void do_rope(const Tensor& qkv, const Tensor& positions, const Rope& rope,                \
                      const KvShape& shape, const Tensor& q, const Tensor& kv) suffix;             \
  prefix void do_begin_step(const StepView& step, const KvView& store, int heads_q) suffix;        \
  prefix void do_kv_attend(const Tensor& q, const Tensor& kv, const KvView& store,                 \
                           const StepView& step, int layer, float scale, const Tensor& out)        \
      suffix;                                                                                      \
  prefix void do_kv_append(const Tensor& kv, const KvView& store, const StepView& step, int layer, \
                           int layers) suffix;                                                     \
  prefix void do_gated_activation(const Tensor& gate_up, Activation activation,                    \
                                  const Operand& out) suffix;                                      \
  prefix void do_activate(const Tensor& x, Activation activation) suffix;                          \
  prefix void do_gather_rows(const Tensor& x, const Tensor& rows, const Tensor& out) suffix;       \
  prefix void do_add_rows(const Tensor& x, const Tensor& sums) suffix;                             \
  prefix void do_sample(const Tensor& logits, std::span<const SampleRow> rows, const Tensor& ids)  \
      suffix

class Backend {
 public:
  virtual ~Backend() = default;

  virtual DeviceInfo info() const = 0;
  virtual DType activation_type(DType weight) const = 0;
  virtual DType query_type() const = 0;
  // Checks that this device has kernels for a model shape. Returns `unsupported`, naming the first
  // size that it cannot handle.
  virtual Status check_shape([[maybe_unused]] const KvShape& shape,
                             [[maybe_unused]] int hidden) const {
    return ok_status();
  }
  // Returns true if this device multiplies by matrices of this format without converting them
  // first. Matrices of other formats become plain while they are loaded.
  virtual bool multiplies(const WeightFormat& format) const {
    return format.kind == WeightKind::plain;
  }
  // Returns how matmul, called with the same arguments, rounds x before the product. W is
  // quantized. Only the shape and the strides of `x` matter.
  virtual ProductInput product_input(const Tensor& x, const Weight& w, const Tensor& bias,
                                     const Tensor& out);
  // Returns the bytes of scratch that a product of up to `rows` rows by a quantized matrix needs on
  // this device. Only the format, n, k and `hadamard` of `w` matter.
  virtual int64_t product_scratch_bytes([[maybe_unused]] const Weight& w,
                                        [[maybe_unused]] int64_t rows) const {
    return 0;
  }
  // Gives products by quantized matrices their scratch, aligned to 256 bytes. It must stay valid
  // for as long as such products are called. Its contents never matter to the caller.
  virtual void use_product_scratch([[maybe_unused]] std::byte* memory,
                                   [[maybe_unused]] int64_t bytes) {}

  // Returns the bytes of scratch memory (KvView::scratch) that hold one layer's history of `tokens`
  // tokens in 16 bits. 0 = this device needs no scratch for this format.
  virtual int64_t scratch_bytes_for([[maybe_unused]] const KvLayout& layout,
                                    [[maybe_unused]] int64_t tokens) const {
    return 0;
  }

  // Removes from the groups of a step those whose shared pages this device does not read once for
  // all members, because that would not be faster. The order of the groups may change, and their
  // pages_begin and members_begin do not matter here. A device that keeps no groups reads shared
  // pages like other pages.
  virtual KeptGroups keep_groups([[maybe_unused]] const KvLayout& layout,
                                 [[maybe_unused]] int heads_q,
                                 [[maybe_unused]] const GroupRests& rests,
                                 std::vector<StepGroup>& groups) const {
    groups.clear();
    return {};
  }

  // --- memory -----------------------------------------------------------------------------------
  // Allocates uninitialized memory, aligned to 256 bytes. Returns `resource_exhausted`, naming
  // `what` and the bytes, if the device has not enough.
  Result<Buffer> allocate(size_t bytes, std::string_view what);
  // Copy between host and device memory. `upload` may return before the copy is done, but it has
  // read `source` by then. `download` waits for all work enqueued before it.
  virtual void upload(void* device, const void* source, size_t bytes) = 0;
  virtual void download(void* target, const void* device, size_t bytes) = 0;
  virtual void fill_zero(void* device, size_t bytes) = 0;
  // Copies within the device, in order with the ops. The two ranges must not overlap.
  virtual void copy(void* to, const void* from, size_t bytes) = 0;
  virtual void synchronize() = 0;

  // --- copies beside the ops --------------------------------------------------------------------
  // Allocates host memory for copy_beside. Returns `resource_exhausted` if there is not enough.
  virtual Result<HostMemory> allocate_host(size_t bytes) = 0;
  // Enqueues a batch of copies that run while ops run, and returns the batch's number, from 1.
  // Batches run in the order of the calls, and the copies of a batch in its order. A batch begins
  // after all ops that were called before it. Ops that are called later do not wait for it
  // (wait_beside), so they must not write what it reads, and not read or write what it writes.
  virtual uint64_t copy_beside(std::span<const HostCopy> copies) = 0;
  // Returns the number of batches that are done. Does not wait. The caller may then read what they
  // wrote to the host, and ops that are called now see what they wrote to the device.
  virtual uint64_t copied_beside() = 0;
  // Returns the seconds for which the device has copied, in all batches that the last call of
  // copied_beside() counted. Waiting for ops and for other batches does not count.
  virtual double seconds_beside() const = 0;
  // Makes ops that are called from now on begin after the first `batches` batches. The caller does
  // not wait where ops return before they are done.
  virtual void wait_beside(uint64_t batches) = 0;

  // --- order ------------------------------------------------------------------------------------
  // Enqueues the ops that `ops` calls. A device with graphs may record them under `key`. If the
  // same key comes again, it replays the record without calling `ops`. So shapes and addresses must
  // be the same each time, but contents may differ. `ops` must not upload, download, allocate or
  // sample. While ops are observed, nothing is recorded: a replay would pass the observer by.
  void run_recorded(uint64_t key, const std::function<void()>& ops);
  // Returns true if ops return before they are done. Then it pays to plan a step while another
  // runs.
  virtual bool asynchronous() const { return false; }

  // --- observation ------------------------------------------------------------------------------
  // Shows attention to `observer` from now on. For studies (study/kv_study.h): the server never
  // calls it. The observer lives as long as the backend.
  void observe(AttentionObserver observer) { observer_ = std::move(observer); }

  // --- time -------------------------------------------------------------------------------------
  // Records the time at which the device reaches this place in the order of calls, under an index
  // in [0, kMarks). An index may be used again. Not allowed inside run_recorded.
  static constexpr int kMarks = 8;
  virtual void mark(int index) = 0;
  // Returns the seconds on the device's clock from one mark to a later one. Waits until the device
  // has reached `to`.
  virtual double seconds_between(int from, int to) = 0;

  // --- ops --------------------------------------------------------------------------------------
  // out[i] = table[ids[i]].  table [vocab, n] w or quantized, ids [t] i32, out [t, n] a.
  void embed(const Weight& table, const Tensor& ids, const Tensor& out);

  // ids[i] = sampled[-1 - ids[i]] if ids[i] < 0. Such an id stands for a token that the host does
  // not know yet, because the step that samples it still runs. ids [t] i32, sampled [m] i32.
  void resolve_ids(const Tensor& ids, const Tensor& sampled);

  // out = norm(x) * weight (+ bias).  rms: x / sqrt(mean(x^2) + eps); layer: (x - mean) / sqrt(var
  // + eps). x [t, n] a; weight, bias [n] w (bias may be empty); out [t, n].
  void norm(const Tensor& x, const Tensor& weight, const Tensor& bias, NormKind kind, float eps,
            const Operand& out);

  // x += delta, then out = norm(x) as above. x is the residual stream and keeps type `a`.
  void add_norm(const Tensor& x, const Tensor& delta, const Tensor& weight, const Tensor& bias,
                NormKind kind, float eps, const Operand& out);

  // x += delta.  [t, n] a both.
  void add(const Tensor& x, const Tensor& delta);

  // out = x W^T (+ bias).  x [t, k] a, W [n, k] w, bias [n] w or empty, out [t, n] a or f32.
  // On the CPU, each row of `out` depends on its row of `x` alone, bit for bit.
  //
  // W may be quantized in a format that the device multiplies. Then x may be rounded first, as
  // product_input() says. A bias has any float type on the CPU and type `a` on CUDA. x may be
  // quantized if takes_quantized() is true of W, on CUDA only where product_input() is e4m3_rows.
  void matmul(const Operand& x, const Weight& w, const Tensor& bias, const Tensor& out);

  // Splits qkv into heads, norms q and k if asked to, rotates q and k by RoPE, multiplies q, k and
  // v by the Hadamard matrix if asked to, and writes q and kv. kv is saturated to f16. qkv [t, (hq
  // + 2 hk) d] a: q heads, k heads, v heads; positions [t] i32; q [t, hq d] query_type(); kv [t, 2
  // hk d] f16: k heads, v heads.
  void rope(const Tensor& qkv, const Tensor& positions, const Rope& rope, const KvShape& shape,
            const Tensor& q, const Tensor& kv);

  // Prepares what the attention of all layers of a step shares. Call it once a step, before the
  // first kv_attend of the step and after the step's sequences are on the device. Until a layer's
  // kv_attend, nothing may write that layer's part of the store. heads_q: query heads. `step` has
  // the window of the layer that attends first. What another window needs is prepared when the
  // first layer with that window attends.
  void begin_step(const StepView& step, const KvView& store, int heads_q);

  // out = softmax(q K^T * scale) V for every row. A row attends to its sequence's history (KvMode
  // says where that is) and to the step's own tokens up to itself. Query head h reads KV head
  // h / (hq / hk). The softmax states of pages, residual and own tokens are merged
  // (docs/design/kv-format.md, section 8).
  // q [t, hq d] query_type(), kv [t, 2 hk d] f16, out [t, hq d] a.
  void kv_attend(const Tensor& q, const Tensor& kv, const KvView& store, const StepView& step,
                 int layer, float scale, const Tensor& out);

  // Stores the step's own tokens in `layers` layers, beginning with `layer`. Call it after
  // attention has read the history. By the sequence's KvMode it appends to residual and pages,
  // appends to staging, or quantizes a whole prompt (docs/design/kv-format.md, sections 2 and 7).
  // kv [layers t, 2 hk d] f16, layer by layer.
  void kv_append(const Tensor& kv, const KvView& store, const StepView& step, int layer,
                 int layers = 1);

  // out = act(gate) * up.  gate_up [t, 2 f] a (gate, then up), out [t, f].
  void gated_activation(const Tensor& gate_up, Activation activation, const Operand& out);

  // x = act(x) in place.  [t, f] a.
  void activate(const Tensor& x, Activation activation);

  // out[i] = x[rows[i]].  x [t, n] a, rows [m] i32, out [m, n] a.
  void gather_rows(const Tensor& x, const Tensor& rows, const Tensor& out);

  // sums[c] += x[0, c] + x[1, c] + ..., row after row in this order.  x [t, n] a, sums [n] f32.
  void add_rows(const Tensor& x, const Tensor& sums);

  // Samples or scores one token for each row. The call only enqueues the work: collect_samples
  // returns the results. The ids are also written to `ids` on the device, for the next step.
  // SampleRow::logprobs is at most logprobs_max().
  // logits [m, vocab] f32; rows: m entries; ids [m] i32.
  void sample(const Tensor& logits, std::span<const SampleRow> rows, const Tensor& ids);
  virtual int logprobs_max() const = 0;
  // Waits for the oldest sample() that has not been collected and writes its m results to `out`. At
  // most two may be outstanding.
  virtual void collect_samples(std::vector<SampledToken>& out) = 0;

 protected:
  Backend() = default;

 private:
  friend class Buffer;
  virtual Result<std::byte*> do_allocate(size_t bytes) = 0;
  virtual void do_free(std::byte* data, size_t bytes) = 0;

  KIVI_BACKEND_OPS(virtual, = 0);
  virtual void do_run_recorded(uint64_t key, const std::function<void()>& ops);

  // Calls `show` with the observer. The ops that it calls are not observed.
  template <class Show>
  void observed(const Show& show);

  const StepSequence* begun_ = nullptr;  // of the step that begin_step was called for last
  AttentionObserver observer_;
};

// Creates the CPU backend with this many threads (0 = one for each core). Never fails.
std::unique_ptr<Backend> make_cpu_backend(int threads);

// Creates the CUDA backend. Returns `unsupported` if the program was built without CUDA, and
// `not_found` if there is no device. CMake chooses which of two source files defines this function.
Result<std::unique_ptr<Backend>> make_cuda_backend(int device);

}  // namespace kivi
