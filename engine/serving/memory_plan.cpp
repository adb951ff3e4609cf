// SPDX-License-Identifier: Apache-2.0
#include "engine/serving/memory_plan.h"

#include <fmt/format.h>

#include <algorithm>

namespace kivi {

namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

std::string line(const char* name, int64_t bytes, const std::string& what) {
  return fmt::format("  {:<10} {:>10.1f} MiB{}{}\n", name, double(bytes) / (1 << 20),
                     what.empty() ? "" : "  ", what);
}

int staging_pages_wanted(const EngineConfig& config, const KvLayout& layout, int max_model_len) {
  const bool staged = layout.format.kind == KvKind::kivi &&
                      config.kivi_prefill == PrefillMode::exact &&
                      max_model_len > config.prefill_chunk_tokens;
  if (!staged) return 0;
  const int64_t tokens = std::min<int64_t>(config.prefill_staging_tokens,
                                           int64_t(config.max_num_seqs) * max_model_len);
  return int(ceil_div(tokens, KvLayout::kStagingTokens));
}

// The longest prompt that is staged: the scheduler's rule.
int64_t staged_tokens_max(const EngineConfig& config, const KvCapacity& capacity) {
  const int64_t chunk = config.prefill_chunk_tokens;
  const int64_t whole_chunks =
      int64_t(capacity.staging_pages) * KvLayout::kStagingTokens / chunk * chunk;
  return capacity.staging_pages == 0
             ? 0
             : std::min<int64_t>(config.prefill_staging_tokens, whole_chunks + chunk);
}

std::string describe_prompts(const EngineConfig& config, const KvLayout& layout,
                             const KvCapacity& capacity, int max_model_len) {
  if (layout.format.kind != KvKind::kivi) return "";
  const bool exact = config.kivi_prefill == PrefillMode::exact;
  const int64_t staged = std::max<int64_t>(config.prefill_chunk_tokens,
                                           exact ? staged_tokens_max(config, capacity) : 0);
  const int64_t most = std::max<int64_t>(staged, capacity.layerwise_tokens);
  std::string how = most > config.prefill_chunk_tokens ? "exact" : "one chunk";
  if (most > staged) how += fmt::format(", from {} tokens on layer by layer", staged + 1);
  if (most >= max_model_len)
    return fmt::format("all attend to the whole prompt in 16 bits ({})", how);
  return fmt::format(
      "up to {} tokens attend to the whole prompt in 16 bits ({}); in longer ones each chunk of {} "
      "attends to the chunks before it as quantized (stream)",
      most, how, config.prefill_chunk_tokens);
}

// Bytes of one token in the area of a prompt that is computed layer by layer.
int64_t layerwise_token_bytes(const KvLayout& layout, int64_t hidden_bytes) {
  return layout.staging_page_bytes() / layout.shape.layers / KvLayout::kStagingTokens +
         hidden_bytes;
}

// Tokens of the longest prompt that is computed layer by layer; 0: none is.
int64_t layerwise_tokens(const EngineConfig& config, const KvLayout& layout,
                         const KvCapacity& capacity, int max_model_len, int64_t hidden_bytes,
                         int64_t bytes_max) {
  const int64_t staged =
      std::max<int64_t>(config.prefill_chunk_tokens, staged_tokens_max(config, capacity));
  if (layout.format.kind != KvKind::kivi || config.kivi_prefill != PrefillMode::exact ||
      max_model_len <= staged || hidden_bytes == 0)
    return 0;
  const int64_t wanted = std::min<int64_t>(config.prefill_layerwise_tokens, max_model_len);
  const int64_t pages =
      std::min(ceil_div(wanted, KvLayout::kStagingTokens),
               std::max<int64_t>(bytes_max, 0) /
                   (layerwise_token_bytes(layout, hidden_bytes) * KvLayout::kStagingTokens));
  const int64_t tokens = std::min(wanted, pages * KvLayout::kStagingTokens);
  return tokens > staged ? tokens : 0;
}

std::string describe_prefixes(const EngineConfig& config, const KvLayout& layout) {
  const PrefixBlocks blocks = PrefixBlocks::of(layout);
  std::string text = fmt::format("from {} tokens on, in blocks of {}", blocks.first, blocks.block);
  if (layout.format.kind == KvKind::kivi && config.kivi_prefill == PrefillMode::stream)
    text = config.prefill_chunk_tokens < blocks.first
               ? fmt::format("none: chunks of {} tokens are shorter than a block of {}",
                             config.prefill_chunk_tokens, blocks.first)
               : "whole chunks of prompts";
  if (blocks.slab_pages > 0)
    text += fmt::format("; a checkpoint takes {} pages", blocks.slab_pages);
  return text;
}

}  // namespace

std::string describe(const KvLayout& layout) {
  const KvFormat& format = layout.format;
  if (format.kind != KvKind::kivi) return name_of(format);
  const std::string text =
      fmt::format("{} G{} R{}", name_of(layout), format.group, format.residual);
  return format.sinks == 0 ? text : fmt::format("{} S{}", text, format.sinks);
}

std::string describe(const KvLayerBits& bits) {
  std::string text;
  const auto name = [&](int layer) {
    return fmt::format("k{}v{}", bits.key_bits(layer), bits.value_bits(layer));
  };
  for (int first = 0, end = 0; first < bits.layers; first = end) {
    while (end < bits.layers && name(end) == name(first)) ++end;
    text += fmt::format("{}{}{} {}", text.empty() ? "" : ", ", first,
                        end - first > 1 ? fmt::format("-{}", end - 1) : "", name(first));
  }
  return text;
}

Result<MemoryPlan> plan_store(const EngineConfig& config, const KvLayout& layout, int max_model_len,
                              int64_t budget, int64_t scratch_wanted, bool prefixes,
                              int64_t hidden_bytes) {
  MemoryPlan plan;
  plan.format = describe(layout);
  plan.layer_bits = describe(layout.layer_bits);
  plan.budget = budget;
  plan.max_model_len = max_model_len;

  plan.scratch = std::min(scratch_wanted, std::max<int64_t>(budget, 0) / 8) / 256 * 256;
  plan.scratch_tokens = plan.scratch / (int64_t(4) * layout.shape.heads * layout.shape.head_dim);
  budget -= plan.scratch;

  const int64_t staging_page = layout.staging_page_bytes();
  plan.capacity.staging_pages =
      int(std::min<int64_t>(staging_pages_wanted(config, layout, max_model_len),
                            std::max<int64_t>(budget, 0) / 4 / staging_page));
  plan.staging = plan.capacity.staging_pages * staging_page;

  plan.capacity.layerwise_tokens =
      int(layerwise_tokens(config, layout, plan.capacity, max_model_len, hidden_bytes,
                           plan.budget / 100 * config.prefill_layerwise_percent));
  plan.layerwise = ceil_div(plan.capacity.layerwise_tokens, KvLayout::kStagingTokens) *
                   KvLayout::kStagingTokens * layerwise_token_bytes(layout, hidden_bytes);
  budget -= plan.layerwise;

  const int64_t slot = layout.slot_bytes();  // 0 for f16 and f8
  const int64_t slots_that_fit =
      slot == 0 ? config.max_num_seqs : (budget - plan.staging) / 2 / slot;
  const int64_t slots_wanted = config.max_num_seqs + (prefixes && slot > 0 ? 1 : 0);
  plan.capacity.slots = int(std::clamp<int64_t>(slots_that_fit, 1, slots_wanted));
  plan.sequences_at_once = std::min(plan.capacity.slots, config.max_num_seqs);
  plan.residual = plan.capacity.slots * (slot - layout.slot_sinks_bytes());
  plan.sinks = plan.capacity.slots * layout.slot_sinks_bytes();
  const int64_t slots_bytes = plan.residual + plan.sinks;

  const int64_t page = layout.page_bytes();
  const int64_t pages = (budget - plan.staging - slots_bytes) / page;
  if (budget - plan.staging - slots_bytes < page)
    return Error{ErrorCode::resource_exhausted,
                 fmt::format("memory for the key-value store is {} bytes, must be at least {}: one "
                             "page ({}) and the residual and sinks of one sequence ({})",
                             plan.budget, page + slot, page, slot),
                 "kv_cache_memory_bytes"};
  plan.capacity.pages = int(std::min<int64_t>(pages, INT32_MAX));
  plan.pages = plan.capacity.pages * page;

  plan.prefixes = prefixes ? describe_prefixes(config, layout) : "off";
  plan.prompts = describe_prompts(config, layout, plan.capacity, max_model_len);
  const int page_tokens = layout.page_tokens();
  plan.tokens_capacity = int64_t(plan.capacity.pages) * page_tokens;
  plan.sequences_max = std::min<int64_t>(
      plan.sequences_at_once, plan.capacity.pages / std::max(1, layout.pages_for(max_model_len)));
  plan.bytes_per_token = double(page) / page_tokens;
  plan.bytes_per_token_f16 = 4.0 * layout.shape.layers * layout.shape.heads * layout.shape.head_dim;
  return plan;
}

Status plan_host(const EngineConfig& config, const KvLayout& layout, bool prefixes,
                 MemoryPlan& plan) {
  if (config.kv_host_memory == 0) return ok_status();
  const auto wrong = [&](const std::string& expected) {
    return Error{ErrorCode::invalid,
                 fmt::format("kv_host_memory is {}, must be {}", config.kv_host_memory, expected),
                 "kv_host_memory"};
  };
  if (!prefixes) return wrong("0: a model with dynamic rope scaling has no prefix cache");
  const PrefixBlocks blocks = PrefixBlocks::of(layout);
  const int64_t page = layout.page_bytes(), piece = blocks.block_pages + blocks.slab_pages;
  plan.host_pages = int(std::min<int64_t>(config.kv_host_memory / page, INT32_MAX));
  if (plan.host_pages < piece)
    return wrong(
        fmt::format("0, or at least {}: {} pages of {} bytes, which a checkpoint and its "
                    "block take",
                    piece * page, piece, page));
  plan.host = plan.host_pages * page;
  plan.fetches = config.kv_fetch == KvFetch::fetch     ? "always fetched"
                 : config.kv_fetch == KvFetch::compute ? "never fetched"
                                                       : "fetched where that is estimated to be "
                                                         "faster than computing";
  plan.disk = config.kv_disk;
  plan.disk_bytes = config.kv_disk_read_only ? 0 : config.kv_disk_bytes;
  return ok_status();
}

int64_t store_bytes(const MemoryPlan& plan) {
  return plan.pages + plan.residual + plan.sinks + plan.staging + plan.scratch + plan.layerwise;
}

LayerwiseArea lay_out_layerwise(const MemoryPlan& plan, const KvLayout& layout, std::byte* base,
                                int64_t hidden_size, DType type) {
  LayerwiseArea area;
  if (plan.layerwise == 0) return area;
  area.staging_pages = ceil_div(plan.capacity.layerwise_tokens, KvLayout::kStagingTokens);
  area.staging = base + store_bytes(plan) - plan.layerwise;
  std::byte* hidden =
      area.staging + area.staging_pages * layout.staging_page_bytes() / layout.shape.layers;
  area.hidden =
      make_tensor(hidden, type, area.staging_pages * KvLayout::kStagingTokens, hidden_size);
  return area;
}

KvView lay_out_store(const MemoryPlan& plan, const KvLayout& layout, std::byte* base) {
  // Every region's unit is a multiple of 256 bytes, so the regions need no padding between them.
  const int64_t slots = plan.residual + plan.sinks;
  KIVI_VERIFY(plan.pages % 256 == 0 && slots % 256 == 0 && plan.staging % 256 == 0);
  KvView view;
  view.layout = layout;
  view.pages = base;
  view.slots = view.pages + plan.pages;
  view.staging = view.slots + slots;
  view.scratch = view.staging + plan.staging;
  view.scratch_bytes = plan.scratch;
  view.page_count = plan.capacity.pages;
  view.slot_count = plan.capacity.slots;
  view.staging_page_count = plan.capacity.staging_pages;
  return view;
}

std::string MemoryPlan::text() const {
  const int64_t page_tokens = tokens_capacity / std::max(capacity.pages, 1);
  std::string table = fmt::format("memory plan: {}, key-value format {}\n", device, format);
  if (!layer_bits.empty()) table += fmt::format("  bits of layers: {}\n", layer_bits);
  table += line("weights", weights, weight_formats);
  table += line("pages", pages,
                fmt::format("{} pages of {} tokens: {} tokens that fit; {:g} bytes a token (fp16: "
                            "{:g}, {:.2f}x)",
                            capacity.pages, page_tokens, tokens_capacity, bytes_per_token,
                            bytes_per_token_f16, bytes_per_token_f16 / bytes_per_token));
  table += line("residual", residual,
                residual == 0 ? "this format has none"
                              : fmt::format("{} slots of {:.2f} MiB", capacity.slots,
                                            double(residual) / capacity.slots / (1 << 20)));
  if (sinks > 0)
    table += line("sinks", sinks,
                  fmt::format("{} slots of {:.2f} MiB", capacity.slots,
                              double(sinks) / capacity.slots / (1 << 20)));
  table += line("staging", staging,
                staging == 0 ? "not needed"
                             : fmt::format("{} prompt tokens in flight",
                                           capacity.staging_pages * KvLayout::kStagingTokens));
  if (layerwise > 0)
    table +=
        line("layerwise", layerwise,
             fmt::format("one prompt of up to {} tokens: a layer's keys and values in 16 bits, "
                         "hidden states",
                         capacity.layerwise_tokens));
  if (scratch > 0)
    table += line("scratch", scratch,
                  fmt::format("{} tokens of one layer's history in 16 bits, while a chunk attends",
                              scratch_tokens));
  table += line("workspace", workspace,
                product_scratch == 0
                    ? "activations, logits, step input"
                    : fmt::format("activations, logits, step input; {:.1f} MiB of scratch for "
                                  "products by quantized matrices",
                                  double(product_scratch) / (1 << 20)));
  table +=
      line("total", weights + pages + residual + sinks + staging + scratch + layerwise + workspace,
           fmt::format("all but weights and workspace are cut from {:.1f} MiB",
                       double(budget) / (1 << 20)));
  if (host > 0)
    table +=
        line("host", host,
             fmt::format("{} more pages for the prefix cache, in the host's memory: {} tokens, "
                         "{}",
                         host_pages, host_pages * page_tokens, fetches));
  if (!disk.empty())
    table += disk_bytes == 0 ? fmt::format("  disk: pages of {} are read\n", disk)
                             : line("disk", disk_bytes, fmt::format("files in {}", disk));
  table += fmt::format("  sequences at once: {} in all; {} of {} tokens\n", sequences_at_once,
                       sequences_max, max_model_len);
  table += fmt::format("  prefix cache: {}\n", prefixes);
  if (!prompts.empty()) table += fmt::format("  prompts: {}\n", prompts);
  return table;
}

}  // namespace kivi
