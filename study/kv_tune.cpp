// SPDX-License-Identifier: Apache-2.0
#include "study/kv_tune.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <sstream>

#include "engine/serving/load.h"
#include "study/bit_budget.h"
#include "study/divergence.h"
#include "study/kv_stats_run.h"
#include "study/perplexity.h"

namespace kivi {
namespace {

using News = std::function<void(const std::string&)>;
using Windows = std::vector<std::vector<int32_t>>;

KvLayerBits all_layers(int layers, BitChoice choice) {
  KvLayerBits bits;
  for (int layer = 0; layer < layers; ++layer) bits.add(choice.key_bits, choice.value_bits);
  return bits;
}

// 4 bits everywhere but in one layer.
KvLayerBits one_layer(int layers, int changed, BitChoice choice) {
  KvLayerBits bits;
  for (int layer = 0; layer < layers; ++layer) {
    const BitChoice c = layer == changed ? choice : kBitChoices[0];
    bits.add(c.key_bits, c.value_bits);
  }
  return bits;
}

std::string name_of(BitChoice c) { return fmt::format("k{}v{}", c.key_bits, c.value_bits); }

// Windows of the text and the fp16 cache's logits for them.
struct Part {
  Windows windows;
  std::unique_ptr<ReferenceLogits> reference;
};

class Tuner {
 public:
  Tuner(const TuneOptions& options, KvLayout layout, std::string text, const News& news)
      : o_(options), layout_(layout), text_(std::move(text)), news_(news) {}

  Result<TuneReport> run() {
    KIVI_RETURN_IF_ERROR(check_budgets());
    KIVI_RETURN_IF_ERROR(make_references());
    TuneReport report;
    report.format = describe(layout_.of_layer(0));
    report.layers = layout_.shape.layers;
    report.window = o_.window;
    report.search_windows = int(search_.windows.size());
    report.check_windows = int(check_.windows.size());
    for (const BitChoice choice : kBitChoices) {
      KIVI_ASSIGN_OR_RETURN(TuneRow row,
                            measure_row(name_of(choice), all_layers(report.layers, choice)));
      report.uniform.push_back(std::move(row));
    }
    report.base = report.uniform[0].search.mean;
    KIVI_RETURN_IF_ERROR(measure_costs(report));
    for (TuneRow& row : report.uniform) row.estimate = estimate(report, row.bits);
    for (const TuneBudget& budget : o_.budgets) {
      KIVI_ASSIGN_OR_RETURN(const KvLayerBits bits, choose(report, budget));
      KIVI_ASSIGN_OR_RETURN(TuneRow row, measure_row(describe_budget(budget), bits));
      row.estimate = estimate(report, bits);
      report.tuned.push_back(std::move(row));
    }
    news_("");
    return report;
  }

 private:
  // Bytes of a page in one layer.
  int64_t layer_bytes(BitChoice c) const {
    KvLayout one = layout_;
    one.layer_bits = {};
    one.format.key_bits = c.key_bits;
    one.format.value_bits = c.value_bits;
    return int64_t(one.block_bytes()) * one.shape.heads;
  }
  double values_per_token() const {
    return 2.0 * layout_.shape.layers * layout_.shape.heads * layout_.shape.head_dim;
  }
  static std::string describe_budget(const TuneBudget& b) {
    return fmt::format("{:g} {}", b.amount, b.in_bits ? "bits" : "bytes");
  }
  // Bytes of a page in all layers.
  int64_t page_budget(const TuneBudget& b) const {
    const double bytes = b.in_bits ? b.amount / 8 * values_per_token() : b.amount;
    return int64_t(std::floor(bytes * layout_.page_tokens() * (1 + 1e-12)));
  }

  Status check_budgets() const {
    const double layers = layout_.shape.layers, tokens = layout_.page_tokens();
    const double least = double(layer_bytes(kBitChoices[kBitChoiceCount - 1])) * layers / tokens;
    const double most = double(layer_bytes(kBitChoices[0])) * layers / tokens;
    for (const TuneBudget& b : o_.budgets)
      if (double(page_budget(b)) / tokens < least)
        return Error{ErrorCode::invalid,
                     fmt::format("--budget is {}, must be at least {:g} bytes a token ({:g} bits a "
                                 "value), which 2 bits in all layers take; 4 bits take {:g} ({:g})",
                                 describe_budget(b), least, least * 8 / values_per_token(), most,
                                 most * 8 / values_per_token()),
                     "budget"};
    return ok_status();
  }

  EngineConfig config_of(const std::string& format, int chunk) const {
    EngineConfig config = o_.engine;
    config.kv_cache_dtype = format;
    config.kv_layer_bits.clear();
    config.kivi_prefill = PrefillMode::stream;
    config.enable_prefix_caching = false;
    config.prefill_chunk_tokens = chunk;
    config.max_num_batched_tokens = std::max(512, config.max_num_seqs + chunk);
    config.max_num_queued_reqs = 1 << 20;
    config.max_num_queued_tokens = int64_t(1) << 40;
    return config;
  }

  // Reads the windows and the logits of the fp16 cache with weights that are not quantized.
  Status make_references() {
    EngineConfig config = config_of("fp16", 256);
    config.quantization = "none";
    KIVI_ASSIGN_OR_RETURN(const std::unique_ptr<LoadedModel> model, load_model(config, {}));
    const int wanted = o_.windows + o_.check_windows;
    Windows all = windows_of(stories_of(text_), *model->tokenizer, o_.window, wanted);
    if (int(all.size()) < wanted)
      return Error{ErrorCode::invalid,
                   fmt::format("--text {}: holds {} windows of {} tokens, must hold --windows {} + "
                               "--check-windows {}",
                               o_.text, all.size(), o_.window, o_.windows, o_.check_windows),
                   "text"};
    const int vocab = model->engine->model().vocab_size;
    const int64_t bytes = ReferenceLogits::bytes(all, vocab);
    if (bytes > o_.reference_bytes)
      return Error{
          ErrorCode::invalid,
          fmt::format("the reference keeps {} bytes of logits ({} windows of {} tokens, {} "
                      "logits each), at most --reference-bytes {}; take fewer --windows",
                      bytes, all.size(), o_.window, vocab, o_.reference_bytes),
          "reference-bytes"};
    search_.windows.assign(all.begin(), all.begin() + o_.windows);
    check_.windows.assign(all.begin() + o_.windows, all.end());
    for (Part* part : {&search_, &check_}) {
      if (part->windows.empty()) continue;
      part->reference = std::make_unique<ReferenceLogits>(part->windows, vocab);
      model->engine->on_logits(part->reference->recorder());
      news_("reference, fp16");
      const auto done = score_prompts(*model->engine, part->windows);
      model->engine->on_logits({});
      if (!done.ok()) return done.error();
    }
    return ok_status();
  }

  Result<std::unique_ptr<LoadedModel>> load(const KvLayerBits& bits) const {
    EngineConfig config = config_of(o_.engine.kv_cache_dtype, 1);
    config.kv_layer_table = bits;
    return load_model(config, {});
  }

  // Every token of the windows reads its history from the store, as decoding does.
  static Result<MeasuredKl> measure(const LoadedModel& model, const Part& part) {
    if (part.windows.empty()) return MeasuredKl{};
    DivergenceMeter meter(*part.reference);
    model.engine->on_logits(meter.observer());
    const auto done = score_prompts(*model.engine, part.windows);
    model.engine->on_logits({});
    if (!done.ok()) return done.error();
    const Divergence d = meter.result();
    return MeasuredKl{d.kl_mean, d.kl_error};
  }

  Result<TuneRow> measure_row(std::string name, const KvLayerBits& bits) const {
    news_(fmt::format("{}: {}", name, describe(bits)));
    KIVI_ASSIGN_OR_RETURN(const std::unique_ptr<LoadedModel> model, load(bits));
    TuneRow row;
    row.name = std::move(name);
    row.bits = bits;
    row.bytes_per_token = model->plan.bytes_per_token;
    row.bits_per_value = row.bytes_per_token * 8 / values_per_token();
    KIVI_ASSIGN_OR_RETURN(row.search, measure(*model, search_));
    KIVI_ASSIGN_OR_RETURN(row.check, measure(*model, check_));
    return row;
  }

  Status measure_costs(TuneReport& report) const {
    for (int layer = 0; layer < report.layers; ++layer) {
      std::vector<double>& costs = report.costs.emplace_back();
      for (const BitChoice choice : kBitChoices) {
        if (costs.empty()) {
          costs.push_back(0);
          continue;
        }
        news_(fmt::format("layer {} of {}, {}", layer, report.layers, name_of(choice)));
        KIVI_ASSIGN_OR_RETURN(const std::unique_ptr<LoadedModel> model,
                              load(one_layer(report.layers, layer, choice)));
        KIVI_ASSIGN_OR_RETURN(const MeasuredKl kl, measure(*model, search_));
        costs.push_back(std::max(0.0, kl.mean - report.base));
      }
    }
    return ok_status();
  }

  // Noises of different layers are about independent, and KL is about quadratic in noise, so costs
  // add up.
  static double estimate(const TuneReport& report, const KvLayerBits& bits) {
    double sum = report.base;
    for (int layer = 0; layer < report.layers; ++layer)
      for (int c = 0; c < kBitChoiceCount; ++c)
        if (kBitChoices[c].key_bits == bits.key_bits(layer) &&
            kBitChoices[c].value_bits == bits.value_bits(layer))
          sum += report.costs[size_t(layer)][size_t(c)];
    return sum;
  }

  Result<KvLayerBits> choose(const TuneReport& report, const TuneBudget& budget) const {
    std::vector<std::vector<LayerChoice>> layers;
    for (const std::vector<double>& costs : report.costs) {
      std::vector<LayerChoice>& choices = layers.emplace_back();
      for (size_t c = 0; c < costs.size(); ++c)
        choices.push_back({layer_bytes(kBitChoices[c]), costs[c]});
    }
    KIVI_ASSIGN_OR_RETURN(const std::vector<int> chosen, spend_budget(layers, page_budget(budget)));
    KvLayerBits bits;
    for (const int c : chosen) bits.add(kBitChoices[c].key_bits, kBitChoices[c].value_bits);
    return bits;
  }

  const TuneOptions& o_;
  const KvLayout layout_;
  const std::string text_;
  const News& news_;
  Part search_, check_;
};

std::string line_of(const TuneReport& report, const TuneRow& row) {
  const std::string check =
      report.check_windows == 0
          ? ""
          : fmt::format(" {:>10.5f} +- {:.5f}", row.check.mean, row.check.error);
  return fmt::format("  {:<12} {:>9.3f} {:>12.1f} {:>10.5f} {:>10.5f} +- {:.5f}{}\n", row.name,
                     row.bits_per_value, row.bytes_per_token, row.estimate, row.search.mean,
                     row.search.error, check);
}

std::vector<const TuneRow*> rows_of(const TuneReport& report) {
  std::vector<const TuneRow*> rows;
  for (const TuneRow& row : report.uniform) rows.push_back(&row);
  for (const TuneRow& row : report.tuned) rows.push_back(&row);
  return rows;
}

}  // namespace

Result<TuneReport> tune_layer_bits(const TuneOptions& options, const News& news) {
  if (options.budgets.empty())
    return Error{ErrorCode::invalid,
                 "--budget is missing. Give bytes a token, or bits a value such as 3bits",
                 "budget"};
  std::ifstream file(options.text, std::ios::binary);
  std::ostringstream text;
  if (!file || !(text << file.rdbuf()))
    return Error{ErrorCode::not_found, fmt::format("--text {}: cannot be read", options.text),
                 "text"};
  KIVI_ASSIGN_OR_RETURN(const ModelSummary model, summarize_model(options.engine.model));
  KvLayout layout;
  layout.shape = {model.layers, model.heads_kv, model.head_dim};
  KIVI_ASSIGN_OR_RETURN(layout.format, kv_format_of(options.engine, layout.shape, model.heads_q));
  if (layout.format.kind != KvKind::kivi)
    return Error{ErrorCode::invalid,
                 fmt::format("the cache format is {}, which has no bits to choose; "
                             "--kv-cache-dtype must be a KIVI format",
                             name_of(layout.format)),
                 "kv_cache_dtype"};
  if (model.layers > KvLayerBits::kLayersMax)
    return Error{ErrorCode::unsupported,
                 fmt::format("the model has {} layers, a table can have at most {}", model.layers,
                             KvLayerBits::kLayersMax),
                 "model"};
  layout.layer_bits = all_layers(model.layers, kBitChoices[0]);
  return Tuner(options, layout, text.str(), news).run();
}

std::string tune_text(const TuneReport& report) {
  std::string text = fmt::format(
      "{}, {} layers; {} windows of {} tokens to choose by, {} to check\n\n", report.format,
      report.layers, report.search_windows, report.window, report.check_windows);
  text += fmt::format("KL with 4 bits everywhere is {:.6f} nats a token. What one layer adds:\n",
                      report.base);
  text += fmt::format("  {:>5} {:>10} {:>10} {:>10}\n", "layer", "k4v2", "k2v4", "k2v2");
  for (size_t layer = 0; layer < report.costs.size(); ++layer)
    text += fmt::format("  {:>5} {:>10.6f} {:>10.6f} {:>10.6f}\n", layer, report.costs[layer][1],
                        report.costs[layer][2], report.costs[layer][3]);
  text += fmt::format("\n  {:<12} {:>9} {:>12} {:>10} {:>21}{}\n", "table", "bits", "bytes/token",
                      "estimated", "measured",
                      report.check_windows == 0 ? "" : fmt::format(" {:>21}", "on other windows"));
  std::vector<const TuneRow*> rows = rows_of(report);
  std::ranges::stable_sort(rows, {}, &TuneRow::bytes_per_token);
  for (const TuneRow* row : rows) text += line_of(report, *row);
  for (const TuneRow& row : report.tuned)
    text += fmt::format("\n{}: {}\n", row.name, describe(row.bits));
  return text;
}

nlohmann::ordered_json tune_json(const TuneReport& report) {
  nlohmann::ordered_json json = {{"format", report.format},
                                 {"window", report.window},
                                 {"windows", report.search_windows},
                                 {"check_windows", report.check_windows},
                                 {"base_kl", report.base},
                                 {"costs", nlohmann::ordered_json::array()},
                                 {"tables", nlohmann::ordered_json::array()}};
  for (const std::vector<double>& costs : report.costs)
    json["costs"].push_back({{"k4v2", costs[1]}, {"k2v4", costs[2]}, {"k2v2", costs[3]}});
  for (const TuneRow* row : rows_of(report)) {
    std::vector<int> keys, values;
    for (int layer = 0; layer < row->bits.layers; ++layer) {
      keys.push_back(row->bits.key_bits(layer));
      values.push_back(row->bits.value_bits(layer));
    }
    json["tables"].push_back({{"name", row->name},
                              {"bits", row->bits_per_value},
                              {"bytes_per_token", row->bytes_per_token},
                              {"estimated_kl", row->estimate},
                              {"kl", row->search.mean},
                              {"kl_error", row->search.error},
                              {"check_kl", row->check.mean},
                              {"check_kl_error", row->check.error},
                              {"key_bits", keys},
                              {"value_bits", values}});
  }
  return json;
}

}  // namespace kivi
