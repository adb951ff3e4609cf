// SPDX-License-Identifier: Apache-2.0
#include "engine/config.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <optional>
#include <string_view>

#include "kernels/kv_codec.h"

namespace kivi {
namespace {

struct Preset {
  std::string_view name;
  KvKind kind;
  int key_bits;
  int value_bits;
};
constexpr std::array kPresets = {
    Preset{"fp16", KvKind::f16, 16, 16},     Preset{"fp8", KvKind::f8, 8, 8},
    Preset{"kivi4", KvKind::kivi, 4, 4},     Preset{"kivi2", KvKind::kivi, 2, 2},
    Preset{"kivi-k4v2", KvKind::kivi, 4, 2}, Preset{"kivi-k2v4", KvKind::kivi, 2, 4},
};

const Preset* find_preset(std::string_view name) {
  const auto* preset = std::ranges::find(kPresets, name, &Preset::name);
  return preset == kPresets.end() ? nullptr : preset;
}

Error wrong(const char* field, const std::string& value, const std::string& expected) {
  return Error{ErrorCode::invalid, fmt::format("{} is {}, must be {}", field, value, expected),
               field};
}

Status one_of(const char* field, const std::string& value,
              std::initializer_list<std::string_view> choices) {
  if (std::ranges::find(choices, value) != choices.end()) return ok_status();
  return wrong(field, '"' + value + '"', fmt::format("one of {}", fmt::join(choices, ", ")));
}

Status in_range(const char* field, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return ok_status();
  return wrong(field, std::to_string(value), fmt::format("from {} to {}", low, high));
}

Status check_group_and_residual(const EngineConfig& c) {
  if (c.kivi_group_size != 32 && c.kivi_group_size != 64 && c.kivi_group_size != 128)
    return wrong("kivi_group_size", std::to_string(c.kivi_group_size), "32, 64 or 128");
  if (c.kivi_residual_length <= 0 || c.kivi_residual_length > 1024 ||
      c.kivi_residual_length % c.kivi_group_size != 0)
    return wrong("kivi_residual_length", std::to_string(c.kivi_residual_length),
                 fmt::format("a multiple of kivi_group_size {}, from {} to 1024", c.kivi_group_size,
                             c.kivi_group_size));
  return ok_status();
}

Status check_batch_sizes(const EngineConfig& c) {
  constexpr int64_t kRowsMax = 1 << 20;
  KIVI_RETURN_IF_ERROR(in_range("max_num_seqs", c.max_num_seqs, 1, 1 << 16));
  KIVI_RETURN_IF_ERROR(in_range("prefill_chunk_tokens", c.prefill_chunk_tokens, 1, kRowsMax));
  KIVI_RETURN_IF_ERROR(in_range("prefill_staging_tokens", c.prefill_staging_tokens, 0, 1 << 24));
  KIVI_RETURN_IF_ERROR(
      in_range("prefill_scratch_bytes", c.prefill_scratch_bytes, 0, int64_t(1) << 40));
  // A step must hold every decoding sequence and one chunk, or the oldest prompt could wait
  // forever.
  const int64_t rows_min = int64_t(c.max_num_seqs) + c.prefill_chunk_tokens;
  if (c.max_num_batched_tokens < rows_min || c.max_num_batched_tokens > kRowsMax)
    return wrong("max_num_batched_tokens", std::to_string(c.max_num_batched_tokens),
                 fmt::format("from {} (max_num_seqs {} + prefill_chunk_tokens {}) to {}", rows_min,
                             c.max_num_seqs, c.prefill_chunk_tokens, kRowsMax));
  return ok_status();
}

}  // namespace

Result<KvFormat> kv_format_of(const EngineConfig& config, const KvShape& shape, int query_heads) {
  std::string name = config.kv_cache_dtype;
  if (name == "auto") name = query_heads == shape.heads ? "kivi2" : "kivi4";
  const Preset* preset = find_preset(name);
  if (preset == nullptr)
    return wrong("kv_cache_dtype", '"' + name + '"',
                 "one of auto, fp16, fp8, kivi4, kivi2, kivi-k4v2, kivi-k2v4");

  KvFormat format{preset->kind, preset->key_bits, preset->value_bits, 0, 0};
  if (format.kind == KvKind::kivi) {
    KIVI_RETURN_IF_ERROR(check_group_and_residual(config));
    if (shape.head_dim % config.kivi_group_size != 0)
      return wrong("kivi_group_size", std::to_string(config.kivi_group_size),
                   fmt::format("a divisor of the model's head_dim {}", shape.head_dim));
    format.group = config.kivi_group_size;
    format.residual = config.kivi_residual_length;
  }
  if (const Status status = check_kv_format(format, shape); !status.ok()) {
    Error error = status.error();
    if (error.field.empty()) error.field = "kv_cache_dtype";
    return error;
  }
  return format;
}

std::string name_of(const KvFormat& format) {
  for (const Preset& p : kPresets)
    if (p.kind == format.kind && p.key_bits == format.key_bits && p.value_bits == format.value_bits)
      return std::string(p.name);
  return fmt::format("kivi-k{}v{}", format.key_bits, format.value_bits);
}

Status validate(const EngineConfig& c) {
  KIVI_RETURN_IF_ERROR(one_of("device", c.device, {"auto", "cuda", "cpu"}));
  KIVI_RETURN_IF_ERROR(one_of("dtype", c.dtype, {"auto", "float32", "float16", "bfloat16"}));
  KIVI_RETURN_IF_ERROR(
      one_of("load_format", c.load_format, {"auto", "safetensors", "gguf", "dummy"}));
  KIVI_RETURN_IF_ERROR(in_range("threads", c.threads, 0, 4096));
  KIVI_RETURN_IF_ERROR(in_range("max_model_len", c.max_model_len, 0, 1 << 24));
  KIVI_RETURN_IF_ERROR(one_of("kv_cache_dtype", c.kv_cache_dtype,
                              {"auto", "fp16", "fp8", "kivi4", "kivi2", "kivi-k4v2", "kivi-k2v4"}));
  KIVI_RETURN_IF_ERROR(check_group_and_residual(c));
  KIVI_RETURN_IF_ERROR(
      in_range("kv_cache_memory_bytes", c.kv_cache_memory_bytes, 0, int64_t(1) << 50));
  if (!(c.gpu_memory_utilization > 0 && c.gpu_memory_utilization <= 1))
    return wrong("gpu_memory_utilization", fmt::format("{}", c.gpu_memory_utilization),
                 "in (0, 1]");
  KIVI_RETURN_IF_ERROR(check_batch_sizes(c));
  KIVI_RETURN_IF_ERROR(in_range("max_num_queued_reqs", c.max_num_queued_reqs, 1, 1 << 24));
  KIVI_RETURN_IF_ERROR(
      in_range("max_num_queued_tokens", c.max_num_queued_tokens, 1, int64_t(1) << 40));
  KIVI_RETURN_IF_ERROR(in_range("max_tokenize_bytes", c.max_tokenize_bytes, 1, int64_t(1) << 40));
  KIVI_RETURN_IF_ERROR(in_range("max_reply_bytes", c.max_reply_bytes, 1, int64_t(1) << 40));
  return in_range("max_logprobs", c.max_logprobs, 0, 1024);
}

}  // namespace kivi
