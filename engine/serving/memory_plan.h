// SPDX-License-Identifier: Apache-2.0
// MemoryPlan says how the device's memory is divided. It is made once at start-up. This is
// arithmetic only, exact to the byte.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "base/result.h"
#include "engine/config.h"
#include "engine/kv_cache.h"
#include "engine/model/model_runner.h"
#include "kernels/kv_page.h"

namespace kivi {

// The plan. It is printed at start-up and by --dry-run.
struct MemoryPlan {
  std::string device;          // "cpu (AMD EPYC ...)"
  std::string format;          // "kivi2 G32 R128"
  std::string layer_bits;      // "0-2 k4v4, 3 k2v2" where layers differ, else ""
  std::string weight_formats;  // bytes of weights by format, and what was dequantized
  int64_t weights = 0, pages = 0, residual = 0, sinks = 0, staging = 0, scratch = 0, layerwise = 0,
          workspace = 0;        // bytes
  int64_t product_scratch = 0;  // bytes of `workspace` that are for products by quantized matrices
  int64_t budget = 0;           // bytes that all but weights and workspace were cut from
  KvCapacity capacity;
  int max_model_len = 0;        // tokens
  int64_t tokens_capacity = 0;  // tokens in pages
  int sequences_at_once = 0;    // of any length
  int64_t sequences_max = 0;    // sequences of max_model_len tokens at once
  double bytes_per_token = 0;   // in pages, all layers, with scales and minima
  double bytes_per_token_f16 = 0;
  int64_t scratch_tokens = 0;  // of one layer's history that scratch holds in 16 bits
  int host_pages = 0;          // of the prefix cache, on the host
  int64_t host = 0;            // bytes of these; not of the device on CUDA
  std::string fetches;         // when they come back to the device
  std::string disk;            // the folder for more; "": none
  int64_t disk_bytes = 0;      // of its files; 0: it is only read
  std::string prefixes;        // how far the prefix cache goes
  std::string prompts;       // which prompts attend in 16 bits; "" for formats that do not quantize
  std::string text() const;  // the table
};

// The default bytes for pages, residual and staging on the CPU.
inline constexpr int64_t kDefaultCpuStoreBytes = 512 << 20;

// Returns text such as "kivi2 G32 R128", "kivi2.5 G32 R128 S32", "fp16" or "kivi4.5+layers G32 R128
// S32".
std::string describe(const KvLayout& layout);
// Returns the whole table as text: "0-2 k4v4, 3 k2v2".
std::string describe(const KvLayerBits& bits);

// Cuts `budget` bytes into the store's regions:
//   scratch   `scratch_wanted` bytes, at most an eighth of the budget. They hold the history of one
//             layer at a time, so their number does not depend on the number of layers.
//   staging   only in prefill mode exact, for kivi formats, where prompts can need more than one
//             chunk: prefill_staging_tokens, at most a quarter of the budget
//   layerwise only in prefill mode exact, for kivi formats, where a prompt can be too long for
//             staging: 16-bit keys and values of one layer, and hidden states of `hidden_bytes`,
//             for each of prefill_layerwise_tokens tokens, at most prefill_layerwise_percent of
//             the budget
//   residual, sinks  one slot for each of max_num_seqs sequences, and with `prefixes` (the prefix
//             cache is on) one for checkpoints; at most half of what is left then
//   pages     the rest
// Fills pages, residual, sinks, staging, scratch, budget, capacity and what follows from them.
// Error resource_exhausted, with the bytes, where not even one page and one slot fit.
Result<MemoryPlan> plan_store(const EngineConfig& config, const KvLayout& layout, int max_model_len,
                              int64_t budget, int64_t scratch_wanted = 0, bool prefixes = false,
                              int64_t hidden_bytes = 0);

// Divides the bytes for pages on the host. Error: kv_host_memory is too little for one piece of the
// prefix cache, or this model has none.
Status plan_host(const EngineConfig& config, const KvLayout& layout, bool prefixes,
                 MemoryPlan& plan);

// Places the store's regions in one allocation of store_bytes(plan) bytes at `base`.
int64_t store_bytes(const MemoryPlan& plan);
KvView lay_out_store(const MemoryPlan& plan, const KvLayout& layout, std::byte* base);
// The area for prompts that are computed layer by layer, behind all others. `hidden`: their row
// size and type.
LayerwiseArea lay_out_layerwise(const MemoryPlan& plan, const KvLayout& layout, std::byte* base,
                                int64_t hidden_size, DType type);

}  // namespace kivi
