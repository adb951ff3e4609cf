// SPDX-License-Identifier: Apache-2.0
#include "engine/config.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <initializer_list>
#include <optional>
#include <string_view>

#include "kernels/kv_codec.h"

namespace kivi {
namespace {

struct Preset {
  std::string_view name;
  KvFormat format;
};

// Bits of keys and values, G; R 128. The second edition has one group of sinks.
constexpr KvFormat first_edition(int key_bits, int value_bits) {
  return {KvKind::kivi, key_bits, value_bits, 32, 128};
}
constexpr KvFormat second_edition(int key_bits, int value_bits, int group) {
  return {KvKind::kivi,         key_bits,         value_bits, group, 128, /*sinks=*/group,
          /*parameter_bits=*/8,
          /*key_bias=*/true,    /*rotation=*/true};
}

constexpr std::array kPresets = {
    Preset{"fp16", {KvKind::f16, 16, 16}},       Preset{"fp8", {KvKind::f8, 8, 8}},
    Preset{"kivi4.5", second_edition(4, 4, 32)}, Preset{"kivi4.25", second_edition(4, 4, 64)},
    Preset{"kivi3.5", second_edition(4, 2, 32)}, Preset{"kivi3.25", second_edition(4, 2, 64)},
    Preset{"kivi2.5", second_edition(2, 2, 32)}, Preset{"kivi2.25", second_edition(2, 2, 64)},
    Preset{"kivi4", first_edition(4, 4)},        Preset{"kivi2", first_edition(2, 2)},
    Preset{"kivi-k4v2", first_edition(4, 2)},    Preset{"kivi-k2v4", first_edition(2, 4)},
};

constexpr auto kPresetNames = [] {
  std::array<std::string_view, kPresets.size()> names;
  for (size_t i = 0; i < names.size(); ++i) names[i] = kPresets[i].name;
  return names;
}();

const Preset* find_preset(std::string_view name) {
  const auto* preset = std::ranges::find(kPresets, name, &Preset::name);
  return preset == kPresets.end() ? nullptr : preset;
}

bool is_power_of_two(int n) { return n > 0 && (n & (n - 1)) == 0; }

// What `auto` is. Decode attention of quantized heads of more than 128 channels has no kernel of
// its own on CUDA and is slow there.
std::string_view automatic_format(const KvShape& shape, int query_heads) {
  if (shape.head_dim > 128) return "fp16";
  if (!check_kv_format(first_edition(4, 4), shape).ok()) return "fp16";
  return query_heads == shape.heads ? "kivi2.5" : "kivi3.5";
}

Error wrong(const char* field, const std::string& value, const std::string& expected) {
  return Error{ErrorCode::invalid, fmt::format("{} is {}, must be {}", field, value, expected),
               field};
}

// One addition of a name: s32 (sinks), p8, p16 (parameter bits), bias, rotation.
bool add(std::string_view addition, KvFormat& format) {
  if (addition == "bias") return format.key_bias = true;
  if (addition == "rotation") return format.rotation = true;
  if (addition.size() < 2 || (addition[0] != 's' && addition[0] != 'p')) return false;
  int number = 0;
  const char* end = addition.data() + addition.size();
  const auto [stop, error] = std::from_chars(addition.data() + 1, end, number);
  if (error != std::errc() || stop != end) return false;
  (addition[0] == 's' ? format.sinks : format.parameter_bits) = number;
  return true;
}

// A preset's name, or one with additions: kivi2+s32+p8.
std::optional<KvFormat> parse_format(std::string_view name) {
  const size_t plus = std::min(name.find('+'), name.size());
  const Preset* preset = find_preset(name.substr(0, plus));
  if (preset == nullptr) return std::nullopt;
  KvFormat format = preset->format;
  for (std::string_view rest = name.substr(plus); !rest.empty();) {
    rest.remove_prefix(1);
    const size_t end = std::min(rest.find('+'), rest.size());
    if (!add(rest.substr(0, end), format)) return std::nullopt;
    rest.remove_prefix(end);
  }
  return format;
}

Error unknown_format(const std::string& name) {
  return wrong("kv_cache_dtype", '"' + name + '"', kv_format_expectation());
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

Status check_format_settings(const EngineConfig& c) {
  if (c.kivi_group_size != 0 && c.kivi_group_size != 32 && c.kivi_group_size != 64 &&
      c.kivi_group_size != 128)
    return wrong("kivi_group_size", std::to_string(c.kivi_group_size),
                 "32, 64 or 128, or 0 for the format's own");
  const int group = c.kivi_group_size == 0 ? 32 : c.kivi_group_size;
  const auto multiple = [&](const char* field, int value, int least) {
    if (value >= least && value <= 1024 && value % group == 0) return ok_status();
    return Status(
        wrong(field, std::to_string(value),
              fmt::format("a multiple of the group size {}, from {} to 1024", group, least)));
  };
  if (c.kivi_residual_length != 0)
    KIVI_RETURN_IF_ERROR(multiple("kivi_residual_length", c.kivi_residual_length, group));
  if (c.kv_sinks != -1) KIVI_RETURN_IF_ERROR(multiple("kv_sinks", c.kv_sinks, 0));
  if (c.kv_parameter_bits != 0 && c.kv_parameter_bits != 8 && c.kv_parameter_bits != 16)
    return wrong("kv_parameter_bits", std::to_string(c.kv_parameter_bits),
                 "8 or 16, or 0 for the format's own");
  return ok_status();
}

bool resolve(Switch s, bool automatic) {
  return s == Switch::automatic ? automatic : s == Switch::on;
}

Status check_disk(const EngineConfig& c) {
  if (c.kv_disk.empty()) {
    const char* field = c.kv_disk_bytes != 0          ? "kv_disk_bytes"
                        : !c.kv_disk_key_file.empty() ? "kv_disk_key_file"
                        : c.kv_disk_read_only         ? "kv_disk_read_only"
                                                      : nullptr;
    if (field == nullptr) return ok_status();
    return Error{ErrorCode::invalid, fmt::format("{} is set, but kv_disk is not", field), field};
  }
  KIVI_RETURN_IF_ERROR(in_range("kv_disk_bytes", c.kv_disk_bytes, 0, int64_t(1) << 60));
  if (c.kv_disk_bytes == 0 && !c.kv_disk_read_only)
    return wrong("kv_disk_bytes", "0", "more than 0 with kv_disk");
  if (c.kv_host_memory > 0) return ok_status();
  return wrong("kv_host_memory", "0", "more than 0 with kv_disk: pages pass through it");
}

Status check_batch_sizes(const EngineConfig& c) {
  constexpr int64_t kRowsMax = 1 << 20;
  KIVI_RETURN_IF_ERROR(in_range("max_num_seqs", c.max_num_seqs, 1, 1 << 16));
  KIVI_RETURN_IF_ERROR(in_range("prefill_chunk_tokens", c.prefill_chunk_tokens, 1, kRowsMax));
  KIVI_RETURN_IF_ERROR(in_range("prefill_staging_tokens", c.prefill_staging_tokens, 0, 1 << 24));
  KIVI_RETURN_IF_ERROR(
      in_range("prefill_layerwise_tokens", c.prefill_layerwise_tokens, 0, 1 << 24));
  KIVI_RETURN_IF_ERROR(in_range("prefill_layerwise_percent", c.prefill_layerwise_percent, 1, 50));
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

std::span<const std::string_view> kv_format_names() { return kPresetNames; }

bool is_kv_format_name(const std::string& name) {
  return name == "auto" || parse_format(name).has_value();
}

std::string kv_format_expectation() {
  return fmt::format(
      "one of auto, {}; to one that begins with kivi, +s32 (sinks), +p8 (parameter "
      "bits), +bias and +rotation may be added",
      fmt::join(kPresetNames, ", "));
}

Result<KvFormat> kv_format_of(const EngineConfig& config, const KvShape& shape, int query_heads) {
  std::string name = config.kv_cache_dtype;
  if (name == "auto") name = automatic_format(shape, query_heads);
  const std::optional<KvFormat> parsed = parse_format(name);
  if (!parsed) return unknown_format(name);

  KvFormat format = *parsed;
  if (format.kind == KvKind::kivi) {
    KIVI_RETURN_IF_ERROR(check_format_settings(config));
    if (config.kivi_group_size != 0) format.group = config.kivi_group_size;
    if (config.kivi_residual_length != 0) format.residual = config.kivi_residual_length;
    // A head size that no KIVI format has is not the group size's fault: check_kv_format says so.
    const bool has_formats = check_kv_format(first_edition(4, 4), shape).ok();
    if (has_formats && shape.head_dim % format.group != 0)
      return wrong("kivi_group_size", std::to_string(format.group),
                   fmt::format("a divisor of the model's head_dim {}", shape.head_dim));
    // The second edition has one group of them.
    if (find_preset(name) != nullptr && format.sinks != 0) format.sinks = format.group;
    if (config.kv_sinks != -1) format.sinks = config.kv_sinks;
    if (config.kv_parameter_bits != 0) format.parameter_bits = config.kv_parameter_bits;
    format.key_bias = resolve(config.kv_key_bias, format.key_bias);
    const bool named = name.find("+rotation") != std::string::npos;
    format.rotation =
        resolve(config.kv_rotation, format.rotation && (named || is_power_of_two(shape.head_dim)));
  }
  if (const Status status = check_kv_format(format, shape); !status.ok()) {
    Error error = status.error();
    if (error.field.empty()) error.field = "kv_cache_dtype";
    return error;
  }
  return format;
}

std::string name_of(const KvFormat& format) {
  KvFormat plain = format;  // without what `describe` says beside the name
  for (const Preset& p : kPresets) {
    plain.residual = p.format.residual;
    plain.sinks = p.format.sinks;
    // The names of the paper's formats do not depend on G.
    if (p.format.parameter_bits == 16) plain.group = p.format.group;
    if (plain == p.format) return std::string(p.name);
    plain.group = format.group;
  }
  const KvFormat codes{format.kind, format.key_bits, format.value_bits, format.group,
                       format.residual};
  return fmt::format("{}{}{}{}", name_of(codes), format.parameter_bits == 8 ? "+p8" : "",
                     format.key_bias ? "+bias" : "", format.rotation ? "+rotation" : "");
}

std::string name_of(const KvLayout& layout) {
  if (layout.layer_bits.empty()) return name_of(layout.format);
  KvFormat widest = layout.format;
  widest.key_bits = widest.value_bits = 4;
  return name_of(widest) + "+layers";
}

Status validate(const EngineConfig& c) {
  KIVI_RETURN_IF_ERROR(one_of("device", c.device, {"auto", "cuda", "cpu"}));
  KIVI_RETURN_IF_ERROR(one_of("dtype", c.dtype, {"auto", "float32", "float16", "bfloat16"}));
  KIVI_RETURN_IF_ERROR(one_of("quantization", c.quantization, {"auto", "none", "fp8", "int4"}));
  KIVI_RETURN_IF_ERROR(
      one_of("load_format", c.load_format, {"auto", "safetensors", "gguf", "dummy"}));
  KIVI_RETURN_IF_ERROR(in_range("threads", c.threads, 0, 4096));
  KIVI_RETURN_IF_ERROR(in_range("max_model_len", c.max_model_len, 0, 1 << 24));
  if (!is_kv_format_name(c.kv_cache_dtype)) return unknown_format(c.kv_cache_dtype);
  KIVI_RETURN_IF_ERROR(check_format_settings(c));
  KIVI_RETURN_IF_ERROR(
      in_range("kv_cache_memory_bytes", c.kv_cache_memory_bytes, 0, int64_t(1) << 50));
  KIVI_RETURN_IF_ERROR(in_range("kv_host_memory", c.kv_host_memory, 0, int64_t(1) << 50));
  if (c.kv_host_memory > 0 && !c.enable_prefix_caching)
    return wrong("kv_host_memory", std::to_string(c.kv_host_memory),
                 "0 while enable_prefix_caching is off");
  KIVI_RETURN_IF_ERROR(check_disk(c));
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
