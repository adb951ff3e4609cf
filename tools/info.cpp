// SPDX-License-Identifier: Apache-2.0
// kivi info MODEL: what a model folder or GGUF file holds, and what its cache costs in each format.
#include <fmt/format.h>

#include "engine/serving/kv_layer_table.h"
#include "engine/serving/load.h"
#include "tools/commands.h"

namespace kivi {
namespace {

// One line: bytes a token in pages, tokens a GiB, and the 16-bit residual of a sequence.
void print_layout(std::string_view name, const KvLayout& layout) {
  const double bytes_per_token = double(layout.page_bytes()) / layout.page_tokens();
  const auto mebibytes = [](int64_t bytes) { return double(bytes) / (1 << 20); };
  fmt::print("  {:<14} {:>14.0f} {:>15.0f} {:>18.2f} MiB {:>12.2f} MiB\n", name, bytes_per_token,
             double(1 << 30) / bytes_per_token,
             mebibytes(layout.slot_bytes() - layout.slot_sinks_bytes()),
             mebibytes(layout.slot_sinks_bytes()));
}

// `settings`: what the user says of the store.
Status print_formats(const ModelSummary& m, const EngineConfig& settings) {
  EngineConfig config;
  const KvShape shape{m.layers, m.heads_kv, m.head_dim};
  fmt::print("\nKV cache (pages with scales and minima; residual and sinks of a sequence)\n");
  fmt::print("  {:<14} {:>14} {:>15} {:>22} {:>16}\n", "format", "bytes a token", "tokens a GiB",
             "residual", "sinks");
  for (const std::string_view name : kv_format_names()) {
    config.kv_cache_dtype = name;
    const Result<KvFormat> format = kv_format_of(config, shape, m.heads_q);
    if (format.ok())
      print_layout(name, {*format, shape, {}});
    else
      fmt::print("  {:<14} not for this model: {}\n", name, format.error().message);
  }
  config.kv_cache_dtype = "auto";
  const auto chosen = kv_format_of(config, shape, m.heads_q);
  if (chosen.ok()) fmt::print("  auto is {}\n", name_of(*chosen));
  if (settings.kv_layer_bits.empty()) return ok_status();
  KIVI_ASSIGN_OR_RETURN(const KvLayout layout, kv_layout_of(settings, shape, m.heads_q));
  fmt::print("\nKV cache with --kv-layer-bits {}\n", settings.kv_layer_bits);
  print_layout(name_of(layout), layout);
  if (!layout.layer_bits.empty()) fmt::print("  bits of layers: {}\n", describe(layout.layer_bits));
  return ok_status();
}

}  // namespace

int run_info(const Arguments& args) {
  Settings settings;
  if (const auto code = read_settings(kInfo, args, settings)) return *code;
  const Result<ModelSummary> summary = summarize_model(settings.engine.model);
  if (!summary.ok()) return report(summary.error());
  const ModelSummary& m = *summary;
  const auto line = [](const char* name, const std::string& value) {
    fmt::print("{:<16}{}\n", name, value);
  };
  line("model", settings.engine.model);
  line("family", m.architecture);
  line("layers", fmt::format("{}, hidden {}", m.layers, m.hidden));
  line("heads", fmt::format("{} query, {} KV, of {} channels", m.heads_q, m.heads_kv, m.head_dim));
  line("vocabulary", std::to_string(m.vocab));
  std::string window;
  if (m.sliding_window > 0) window = fmt::format(", sliding window {}", m.sliding_window);
  if (m.layers_windowed > 0 && m.layers_windowed < m.layers)
    window += fmt::format(" in {} of {} layers", m.layers_windowed, m.layers);
  line("context", fmt::format("{} tokens{}", m.max_len, window));
  line("parameters", std::to_string(m.parameters));
  line("weights", fmt::format("{} bytes, {} ({})", m.weight_bytes, m.dtype, m.weight_formats));
  line("in the files", m.file_types.empty()
                           ? "no weights"
                           : fmt::format("{} bytes; tensors: {}", m.file_bytes, m.file_types));
  line("tokenizer", m.tokenizer_kind);
  line("chat template", m.has_chat_template ? "yes" : "no");
  const Status status = print_formats(m, settings.engine);
  return status.ok() ? 0 : report(status.error());
}

}  // namespace kivi
