// Backend: one device that computes. Memory, order and the ops of a decoder step.
//
// Public op functions check shapes and types once (a breach is our own mistake: KIVI_VERIFY) and
// call the private do_*. CpuBackend is the meaning of every op; CudaBackend must equal it.
//
// Types. `a` is the activation type: activation_type(weight type). CPU: f32 always. CUDA: the
// weight type (bf16 or f16). Weights `w` are f32, f16 or bf16 on the CPU; f16 or bf16 on CUDA.
// Accumulation is in f32 everywhere. Queries that enter attention have query_type() (CPU f32, CUDA
// f16), new keys and values are f16 on every device (to_f16_saturated).
//
// Order. Ops run in the order of the calls. Only `download` and `synchronize` wait.
// Thread rule: one thread at a time uses a Backend.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "kernels/buffer.h"
#include "kernels/sampling.h"
#include "kernels/step_view.h"
#include "kernels/tensor.h"

namespace kivi {

enum class NormKind { rms, layer };
enum class Activation { silu, gelu, gelu_tanh };

// Rotary embedding, neox style: channel i of the first half of `rotary_dim` turns with channel
// i + rotary_dim / 2 (Su et al. 2021, as in Hugging Face's rotate_half).
struct Rope {
  Tensor inverse_frequencies;  // [rotary_dim / 2] f32, device; scaling is already applied
  int rotary_dim = 0;          // <= head_dim; channels beyond pass through
  float attention_factor = 1;  // multiplies cos and sin (yarn's mscale)
  // Dynamic NTK scaling (bloc97, emozilla 2023; as in Transformers): a row whose sequence has
  // `lengths[row]` = L tokens, more than `trained`, turns its frequency i by r^(-2 i / (rotary_dim
  // - 2)) of it, where r = dynamic_factor L / trained - (dynamic_factor - 1). 0: no such scaling,
  // and `lengths` is not read.
  float dynamic_factor = 0;
  int trained = 0;
  Tensor lengths;  // [t] i32, device
};

struct DeviceInfo {
  std::string name;          // "AMD EPYC ... (AVX2, 2 threads)", "NVIDIA H100 80GB HBM3"
  std::string kind;          // "cpu", "cuda"
  int64_t memory_total = 0;  // bytes
  int64_t memory_free = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual DeviceInfo info() const = 0;
  virtual DType activation_type(DType weight) const = 0;
  virtual DType query_type() const = 0;
  // Are there kernels for models of this shape? Error unsupported names what there is none for.
  virtual Status check_shape([[maybe_unused]] const KvShape& shape,
                             [[maybe_unused]] int hidden) const {
    return ok_status();
  }

  // The bytes of scratch memory (KvView::scratch) that hold one layer's history of `tokens` tokens
  // in 16 bits. 0 where this device reads a history of this format where it lies.
  virtual int64_t scratch_bytes_for([[maybe_unused]] const KvLayout& layout,
                                    [[maybe_unused]] int64_t tokens) const {
    return 0;
  }

  // --- memory -----------------------------------------------------------------------------------
  // Uninitialised, 256-byte aligned. Error resource_exhausted names `what` and the bytes.
  Result<Buffer> allocate(size_t bytes, std::string_view what);
  // Copies between host and device memory. upload may return before the copy is done and has read
  // `source` when it returns; download waits for everything before it.
  virtual void upload(void* device, const void* source, size_t bytes) = 0;
  virtual void download(void* target, const void* device, size_t bytes) = 0;
  virtual void fill_zero(void* device, size_t bytes) = 0;
  // Within the device, in order with the ops, at the device's own best rate; not overlapping.
  virtual void copy(void* to, const void* from, size_t bytes) = 0;
  virtual void synchronize() = 0;

  // --- order ------------------------------------------------------------------------------------
  // Enqueues the ops that `ops` calls. A device with graphs may record them under `key` and replay
  // the record when the key comes again, without calling `ops`: so shapes and addresses must be the
  // same each time; contents may differ. No upload, download, allocation or sample inside.
  virtual void run_recorded(uint64_t key, const std::function<void()>& ops);
  // Do ops return before they are done? Then it pays to plan a step while another one runs.
  virtual bool asynchronous() const { return false; }

  // --- time -------------------------------------------------------------------------------------
  // Notes when the device comes to this place in the order of calls, under an index in [0, kMarks),
  // which may be used again. Not inside run_recorded.
  static constexpr int kMarks = 8;
  virtual void mark(int index) = 0;
  // Seconds on the device's clock from one mark to a later one; waits until the device was at `to`.
  virtual double seconds_between(int from, int to) = 0;

  // --- ops --------------------------------------------------------------------------------------
  // out[i] = table[ids[i]].  table [vocab, n] w, ids [t] i32, out [t, n] a.
  void embed(const Tensor& table, const Tensor& ids, const Tensor& out);

  // ids[i] = sampled[-1 - ids[i]] where ids[i] < 0: a token that the host does not know yet, since
  // the step that samples it is still running. ids [t] i32, sampled [m] i32.
  void resolve_ids(const Tensor& ids, const Tensor& sampled);

  // out = norm(x) * weight (+ bias).  rms: x / sqrt(mean(x^2) + eps); layer: (x - mean) / sqrt(var
  // + eps). x, out [t, n] a; weight, bias [n] w (bias may be empty).
  void norm(const Tensor& x, const Tensor& weight, const Tensor& bias, NormKind kind, float eps,
            const Tensor& out);

  // x += delta, then out = norm(x) as above. The residual stream x stays in `a`.
  void add_norm(const Tensor& x, const Tensor& delta, const Tensor& weight, const Tensor& bias,
                NormKind kind, float eps, const Tensor& out);

  // x += delta.  [t, n] a both.
  void add(const Tensor& x, const Tensor& delta);

  // out = x W^T (+ bias).  x [t, k] a, W [n, k] w, bias [n] w or empty, out [t, n] a or f32.
  // A row of `out` depends on its row of `x` alone, bit for bit (CPU).
  void matmul(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& out);

  // Splits qkv [t, (hq + 2 hk) d] a (order: q heads, k heads, v heads; channels contiguous), turns
  // q and k by RoPE at positions [t] i32, and writes q [t, hq d] query_type() and kv [t, 2 hk d]
  // f16 (k heads, then v heads; saturated).
  void rope(const Tensor& qkv, const Tensor& positions, const Rope& rope, const KvShape& shape,
            const Tensor& q, const Tensor& kv);

  // out = softmax(q K^T * scale) V for every row, causal, over the sequence's history (see KvMode)
  // and the step's own tokens up to the row itself. GQA: query head h reads KV head h / (hq / hk).
  // q [t, hq d] query_type(), kv [t, 2 hk d] f16, out [t, hq d] a.
  // Attention is a merge of softmax states: quantized pages, residual and own tokens (kivi.md, 1).
  void kv_attend(const Tensor& q, const Tensor& kv, const KvView& store, const StepView& step,
                 int layer, float scale, const Tensor& out);

  // Stores the step's own tokens in `layers` layers from `layer` on, after attention has read their
  // history: residual write, eviction of values and flush of keys where R is reached; staging; or
  // the quantization of a whole prompt. kv [layers t, 2 hk d] f16, layer by layer.
  void kv_append(const Tensor& kv, const KvView& store, const StepView& step, int layer,
                 int layers = 1);

  // out = act(gate) * up.  gate_up [t, 2 f] a (gate, then up), out [t, f] a.
  void gated_activation(const Tensor& gate_up, Activation activation, const Tensor& out);

  // x = act(x) in place.  [t, f] a.
  void activate(const Tensor& x, Activation activation);

  // out[i] = x[rows[i]].  x [t, n] a, rows [m] i32, out [m, n] a.
  void gather_rows(const Tensor& x, const Tensor& rows, const Tensor& out);

  // Samples (or scores) one token a row. logits [m, vocab] f32; rows: m entries. The ids are also
  // written to `ids` [m] i32 on the device, for the next step. The call enqueues the work; the host
  // gets the results from collect_samples. SampleRow::logprobs is at most logprobs_max().
  void sample(const Tensor& logits, std::span<const SampleRow> rows, const Tensor& ids);
  virtual int logprobs_max() const = 0;
  // Waits for the oldest sample() whose results have not been collected, at most two; `out` gets
  // its m results.
  virtual void collect_samples(std::vector<SampledToken>& out) = 0;

 protected:
  Backend() = default;

 private:
  friend class Buffer;
  virtual Result<std::byte*> do_allocate(size_t bytes) = 0;
  virtual void do_free(std::byte* data, size_t bytes) = 0;

  virtual void do_embed(const Tensor& table, const Tensor& ids, const Tensor& out) = 0;
  virtual void do_resolve_ids(const Tensor& ids, const Tensor& sampled) = 0;
  // `delta` is empty for a plain norm.
  virtual void do_add_norm(const Tensor& x, const Tensor& delta, const Tensor& weight,
                           const Tensor& bias, NormKind kind, float eps, const Tensor& out) = 0;
  virtual void do_add(const Tensor& x, const Tensor& delta) = 0;
  virtual void do_matmul(const Tensor& x, const Tensor& w, const Tensor& bias,
                         const Tensor& out) = 0;
  virtual void do_rope(const Tensor& qkv, const Tensor& positions, const Rope& rope,
                       const KvShape& shape, const Tensor& q, const Tensor& kv) = 0;
  virtual void do_kv_attend(const Tensor& q, const Tensor& kv, const KvView& store,
                            const StepView& step, int layer, float scale, const Tensor& out) = 0;
  virtual void do_kv_append(const Tensor& kv, const KvView& store, const StepView& step, int layer,
                            int layers) = 0;
  virtual void do_gated_activation(const Tensor& gate_up, Activation activation,
                                   const Tensor& out) = 0;
  virtual void do_activate(const Tensor& x, Activation activation) = 0;
  virtual void do_gather_rows(const Tensor& x, const Tensor& rows, const Tensor& out) = 0;
  virtual void do_sample(const Tensor& logits, std::span<const SampleRow> rows,
                         const Tensor& ids) = 0;
};

// threads: 0 = the machine's cores. Never fails.
std::unique_ptr<Backend> make_cpu_backend(int threads);

// Error unsupported where the program was built without CUDA, not_found where there is no device.
// Which of two source files answers is chosen by CMake.
Result<std::unique_ptr<Backend>> make_cuda_backend(int device);

}  // namespace kivi
