// SPDX-License-Identifier: Apache-2.0
// The settings of an engine: plain data with defaults. tools/flags maps every field to a flag, a
// variable KIVI_<FLAG> and a key of a --config file. `validate` is the only judge of combinations.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"
#include "engine/limits.h"
#include "kernels/kv_page.h"

namespace kivi {

enum class PrefillMode { exact, stream };
enum class Switch { automatic, off, on };
enum class SchedulingPolicy { fair, fcfs, priority };
// How a request gets a prefix that lies on the host or on disk: `fetch` copies it back, `compute`
// computes it again, and `automatic` does what is estimated to be faster.
enum class KvFetch { automatic, fetch, compute };

struct EngineConfig {
  std::string model;                  // a Hugging Face folder, a .gguf file or a folder with one
  std::string tokenizer;              // "": the model's own
  std::string chat_template;          // a file; "": the model's own; "none": no chats
  std::string device = "auto";        // auto | cuda | cpu
  std::string dtype = "auto";         // auto (the checkpoint's) | float32 | float16 | bfloat16
  std::string quantization = "auto";  // auto (as the checkpoint) | none | fp8 | int4
  std::string load_format = "auto";   // auto | safetensors | gguf | dummy
  int threads = 0;                    // CPU backend; 0: all cores
  int max_model_len = 0;              // tokens; 0: the model's max_position_embeddings
  uint64_t seed = 0;                  // for requests without a seed: mixed with a request counter

  std::string kv_cache_dtype = "auto";  // auto, or a format with additions (kv_format_names)
  int kivi_group_size = 0;              // G; 0: the format's
  int kivi_residual_length = 0;         // R; 0: the format's
  int kv_sinks = -1;                    // S; -1: the format's
  int kv_parameter_bits = 0;            // of scales and minima: 8 or 16; 0: the format's
  Switch kv_key_bias = Switch::automatic;
  Switch kv_rotation = Switch::automatic;
  std::string kv_layer_bits;   // a file with the bits of each layer; "": the format's in all
  KvLayerBits kv_layer_table;  // the table itself, where kv_layer_bits is ""; no flag, for studies
  PrefillMode kivi_prefill = PrefillMode::exact;
  int64_t kv_cache_memory_bytes = 0;  // 0: CUDA: from gpu_memory_utilization; CPU: 512 MiB
  double gpu_memory_utilization = 0.9;

  int max_num_seqs = 64;              // sequences in a step, and residual slots
  int max_num_batched_tokens = 2048;  // rows of a step; >= max_num_seqs + prefill_chunk_tokens
  int prefill_chunk_tokens = 512;  // a prompt longer than this is computed in chunks of this length
  int prefill_staging_tokens = 4096;  // mode exact: prompt tokens in flight of chunked prompts
  // Mode exact: longer prompts, up to this many tokens, are computed layer by layer. 0: none are.
  int prefill_layerwise_tokens = 1 << 20;
  int prefill_layerwise_percent = 6;  // of the cache's memory, at most, for these prompts
  // CUDA, quantized formats: at most this much memory for the history of a chunk in 16 bits, of one
  // layer at a time; 0: its codes are read where they lie.
  int64_t prefill_scratch_bytes = 256 << 20;
  bool enable_prefix_caching = true;  // reuse the pages of earlier requests (prefix_cache.h)
  bool prefix_cache_per_key = false;  // only requests of the same tenant share pages
  int64_t kv_host_memory = 0;         // bytes for pages of the prefix cache on the host; 0: none
  std::string kv_disk;                // a folder for pages of the prefix cache; "": none
  int64_t kv_disk_bytes = 0;          // of its files
  std::string kv_disk_key_file;       // "": they are not encrypted
  bool kv_disk_read_only = false;
  KvFetch kv_fetch = KvFetch::automatic;
  SchedulingPolicy scheduling_policy = SchedulingPolicy::fair;
  int max_num_queued_reqs = 1024;           // waiting requests; more are refused (503)
  int64_t max_num_queued_tokens = 4 << 20;  // prompt tokens of waiting requests
  int max_logprobs = kDefaultMaxLogprobs;
  int64_t max_tokenize_bytes = kDefaultMaxTokenizeBytes;  // of one text
  int64_t max_reply_bytes = kDefaultMaxReplyBytes;        // of one reply, as estimated beforehand
  bool enforce_eager = false;                             // CUDA: no graphs
};

// The names of the cache formats, without auto. fp16 and fp8 do not quantize in groups. kivi4,
// kivi2, kivi-k4v2 and kivi-k2v4 are the paper's formats. kivi4.5, kivi4.25, kivi3.5, kivi3.25,
// kivi2.5 and kivi2.25 say their bits a value with parameters; they have sinks, parameters of 8
// bits, the key bias and the rotation (docs/design/kv-format.md, section 12). Additions can be
// appended to a KIVI name: kivi2+s32+p8+bias+rotation is kivi2.5.
std::span<const std::string_view> kv_format_names();

// Returns true if `name` is auto, or a format with additions that are known. kv_format_expectation
// says what a name must be, for errors: "one of auto, ...".
bool is_kv_format_name(const std::string& name);
std::string kv_format_expectation();

// Returns the format that kv_cache_dtype names, with what the other settings change in it. `auto`
// is kivi2.5 for multi-head models, kivi3.5 for GQA and MQA models (heads_q > heads_kv), and fp16
// for head sizes other than 64, 96 and 128. Errors name kv_cache_dtype, kivi_group_size,
// kivi_residual_length, kv_sinks, kv_parameter_bits or kv_rotation.
Result<KvFormat> kv_format_of(const EngineConfig& config, const KvShape& shape, int query_heads);

// Returns the name that a user gives to a format ("kivi4", "fp16", ...), for logs and replies. A
// format that has no name of its own gets one that says its bits and additions.
std::string name_of(const KvFormat& format);
// The same for a store. Where layers differ, it is the format with 4 bits for all of them, and
// "+layers": "kivi4.5+layers".
std::string name_of(const KvLayout& layout);

// Checks ranges and combinations that do not depend on the model. The error's field is the name of
// the field above, which is the flag's name with _ for -.
Status validate(const EngineConfig& config);

}  // namespace kivi
