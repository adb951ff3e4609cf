// SPDX-License-Identifier: Apache-2.0
#include "study/eval_run.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <memory>
#include <optional>
#include <sstream>

#include "base/version.h"
#include "study/choices.h"
#include "study/divergence.h"
#include "study/eval_results.h"
#include "study/kv_stats_run.h"
#include "study/perplexity.h"

namespace kivi {

namespace {

using Json = nlohmann::ordered_json;
using News = std::function<void(const std::string&)>;

bool has_groups(const std::string& format) {
  return format != "fp16" && format != "bf16" && format != "fp8";
}

int chunk_of(const EvalOptions& o, const std::string& format) {
  return o.chunk != 0 ? o.chunk : format == "fp16" ? 256 : 1;
}

Result<std::string> read_eval_file(const char* flag, const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  if (!file || !(text << file.rdbuf()))
    return Error{ErrorCode::not_found, fmt::format("--{} {}: cannot be read", flag, path), flag};
  return text.str();
}

EngineConfig config_of(const EvalOptions& o, const EvalCell& cell) {
  EngineConfig config = o.engine;
  config.kv_cache_dtype = cell.format;
  config.kivi_group_size = cell.group;
  config.kivi_residual_length = cell.residual;
  if (!has_groups(cell.format)) config.kv_layer_bits.clear();
  config.kivi_prefill = o.prefill;
  config.enable_prefix_caching = false;  // each window is measured from its first token on
  config.prefill_chunk_tokens = chunk_of(o, cell.format);
  config.max_num_batched_tokens = std::max(512, config.max_num_seqs + config.prefill_chunk_tokens);
  config.max_num_queued_reqs = 1 << 20;
  config.max_num_queued_tokens = int64_t(1) << 40;
  return config;
}

bool refusal(const Error& error) {
  return error.field == "kv_cache_dtype" || error.field == "kivi_group_size" ||
         error.field == "kivi_residual_length" || error.field == "kv_rotation" ||
         error.field == "kv_sinks";
}

Json json_of(const Perplexity& p, size_t windows) {
  return {{"windows", windows}, {"tokens", p.tokens}, {"nll", p.nll}, {"perplexity", p.perplexity}};
}

Json json_of(const PasskeyScore& s, bool ranked) {
  Json json = {{"length", s.length}, {"depth", s.depth}, {"trials", s.trials}, {"found", s.found}};
  if (ranked) json.update({{"likeliest", s.likeliest}, {"rank_mean", s.rank_mean}});
  return json;
}

// One run: the inputs, read once, and the reference, made when a cell first wants it.
class Evaluation {
 public:
  Evaluation(const EvalOptions& options, std::string text, std::vector<ChoiceTask> tasks,
             const News& news)
      : o_(options),
        stories_(stories_of(text)),
        text_(std::move(text)),
        tasks_(std::move(tasks)),
        news_(news) {}

  Result<Json> measure(const EvalCell& cell) {
    // First: two models at once may not fit, and the reference is no part of the cell's seconds.
    if (o_.divergence) KIVI_RETURN_IF_ERROR(make_reference());
    const auto begin = std::chrono::steady_clock::now();
    KIVI_ASSIGN_OR_RETURN(const std::unique_ptr<LoadedModel> model,
                          load_model(config_of(o_, cell), {}));
    KIVI_RETURN_IF_ERROR(prepare(*model));
    Json figures = {{"format", model->plan.format},
                    {"bytes_per_token", model->plan.bytes_per_token},
                    {"chunk", model->engine->config().prefill_chunk_tokens}};
    const ScoreProgress progress = [&](int64_t rows) {
      news_(fmt::format("{}: {} tokens", model->plan.format, rows));
    };
    KIVI_RETURN_IF_ERROR(measure_windows(*model, figures, progress));
    if (o_.stride > 0) KIVI_RETURN_IF_ERROR(measure_strided(*model, figures, progress));
    if (!o_.passkey.lengths.empty()) {
      KIVI_ASSIGN_OR_RETURN(const auto scores, measure_passkey(*model->engine, *model->tokenizer,
                                                               passkeys_, o_.passkey, progress));
      for (const PasskeyScore& score : scores)
        figures["passkey"].push_back(json_of(score, o_.passkey.distractors > 0));
    }
    if (!tasks_.empty()) {
      KIVI_ASSIGN_OR_RETURN(const ChoiceScores s,
                            measure_choices(*model->engine, tasks_, continuations_, progress));
      figures["choices"] = {{"tasks", s.tasks},
                            {"accuracy", s.accuracy},
                            {"accuracy_normalized", s.accuracy_normalized}};
    }
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    figures["seconds"] = seconds.count();
    news_("");
    return figures;
  }

 private:
  struct Reference {
    ReferenceLogits logits;
    Perplexity perplexity;
  };

  Result<std::vector<std::vector<int32_t>>> windows(const LoadedModel& model) const {
    auto windows = windows_of(stories_, *model.tokenizer, o_.window, o_.windows);
    if (windows.empty())
      return Error{ErrorCode::invalid,
                   fmt::format("--text {}: holds no window of {} tokens", o_.text, o_.window),
                   "text"};
    return windows;
  }

  Status measure_windows(const LoadedModel& model, Json& figures, const ScoreProgress& progress) {
    KIVI_ASSIGN_OR_RETURN(const auto prompts, windows(model));
    std::optional<DivergenceMeter> meter;
    if (o_.divergence) {
      meter.emplace(reference_->logits);
      model.engine->on_logits(meter->observer());
    }
    const Result<Perplexity> measured = measure_perplexity(*model.engine, prompts, progress);
    model.engine->on_logits({});
    if (!measured.ok()) return measured.error();
    const Perplexity& p = *measured;
    figures["perplexity"] = json_of(p, prompts.size());
    if (!meter) return ok_status();
    const Divergence d = meter->result();
    std::vector<double> rise;  // of each token's negative log likelihood
    for (size_t i = 0; i < p.token_nll.size(); ++i)
      rise.push_back(double(p.token_nll[i]) - double(reference_->perplexity.token_nll[i]));
    figures["divergence"] = {{"kl_mean", d.kl_mean},
                             {"kl_error", d.kl_error},
                             {"rise", p.nll - reference_->perplexity.nll},
                             {"rise_error", standard_error(reference_->logits.prompt_means(rise))},
                             {"kl_p99", d.kl_p99},
                             {"top1_agreement", d.top1_agreement},
                             {"nll_change", mean_change(p, reference_->perplexity)}};
    return ok_status();
  }

  Status measure_strided(const LoadedModel& model, Json& figures, const ScoreProgress& progress) {
    const std::vector<int32_t> ids = ids_of(stories_, *model.tokenizer);
    const auto windows = strided_windows(int64_t(ids.size()), o_.window, o_.stride, o_.windows);
    std::vector<std::vector<int32_t>> prompts;
    for (const StridedWindow& w : windows)
      prompts.emplace_back(ids.begin() + w.begin, ids.begin() + w.end);
    KIVI_ASSIGN_OR_RETURN(const auto logprobs, score_prompts(*model.engine, prompts, progress));
    figures["strided"] = json_of(strided_perplexity(windows, logprobs), windows.size());
    return ok_status();
  }

  // The prompts of choices and pass keys, which are the same for all cells: made and checked before
  // anything is measured.
  Status prepare(const LoadedModel& model) {
    if (prepared_) return ok_status();
    const int tokens_max = model.engine->model().max_model_len;
    if (!o_.passkey.lengths.empty()) {
      KIVI_ASSIGN_OR_RETURN(
          passkeys_, passkey_set(sentences_of(text_), *model.tokenizer, o_.passkey, tokens_max));
    }
    KIVI_ASSIGN_OR_RETURN(continuations_,
                          choice_continuations(*model.tokenizer, tasks_, o_.choices, tokens_max));
    prepared_ = true;
    return ok_status();
  }

  // Runs the fp16 cache over the windows, with weights that are not quantized, and keeps its
  // logits.
  Status make_reference() {
    if (reference_) return ok_status();
    EngineConfig config = config_of(o_, {.format = "fp16"});
    config.quantization = "none";
    KIVI_ASSIGN_OR_RETURN(const std::unique_ptr<LoadedModel> model, load_model(config, {}));
    KIVI_RETURN_IF_ERROR(prepare(*model));
    KIVI_ASSIGN_OR_RETURN(const auto prompts, windows(*model));
    const int vocab = model->engine->model().vocab_size;
    const int64_t bytes = ReferenceLogits::bytes(prompts, vocab);
    if (bytes > o_.reference_bytes)
      return Error{ErrorCode::invalid,
                   fmt::format("--divergence keeps {} bytes of logits ({} windows of {} tokens, {} "
                               "logits each), at most --reference-bytes {}; take fewer --windows",
                               bytes, prompts.size(), o_.window, vocab, o_.reference_bytes),
                   "reference-bytes"};
    std::unique_ptr<Reference> reference(new Reference{ReferenceLogits(prompts, vocab), {}});
    model->engine->on_logits(reference->logits.recorder());
    Result<Perplexity> perplexity = measure_perplexity(*model->engine, prompts, [&](int64_t rows) {
      news_(fmt::format("reference, fp16: {} tokens", rows));
    });
    model->engine->on_logits({});
    KIVI_ASSIGN_OR_RETURN(reference->perplexity, std::move(perplexity));
    reference_ = std::move(reference);  // only a whole one
    return ok_status();
  }

  const EvalOptions& o_;
  const std::vector<std::string> stories_;
  const std::string text_;
  const std::vector<ChoiceTask> tasks_;
  const News& news_;
  std::unique_ptr<Reference> reference_;
  bool prepared_ = false;
  PasskeySet passkeys_;
  std::vector<Continuation> continuations_;  // of tasks_
};

}  // namespace

std::vector<EvalCell> grid_of(const EvalOptions& o) {
  std::vector<EvalCell> cells;
  for (const std::string& format : o.formats)
    for (const int group : o.groups)
      for (const int residual : o.residuals) {
        const EvalCell cell =
            has_groups(format) ? EvalCell{format, group, residual} : EvalCell{.format = format};
        if (std::ranges::find(cells, cell) == cells.end()) cells.push_back(cell);
      }
  return cells;
}

Json settings_of(const EvalOptions& o, const EvalCell& cell, const std::string& choices_hash) {
  Json settings = {{"version", KIVI_VERSION},
                   {"format", cell.format},
                   {"group", cell.group},
                   {"residual", cell.residual},
                   {"prefill", o.prefill == PrefillMode::exact ? "exact" : "stream"},
                   {"chunk", chunk_of(o, cell.format)},
                   {"device", o.engine.device},
                   {"dtype", o.engine.dtype},
                   {"quantization", o.engine.quantization},
                   {"window", o.window},
                   {"windows", o.windows},
                   {"stride", o.stride},
                   {"divergence", o.divergence},
                   {"choices", choices_hash}};
  if (!o.passkey.lengths.empty())
    settings["passkey"] = {{"lengths", o.passkey.lengths},
                           {"depths", o.passkey.depths},
                           {"trials", o.passkey.trials},
                           {"distractors", o.passkey.distractors}};
  return settings;
}

Result<std::vector<EvalFigures>> run_evaluation(const EvalOptions& options, const News& news) {
  KIVI_ASSIGN_OR_RETURN(std::string text, read_eval_file("text", options.text));
  std::string choices_hash;
  std::vector<ChoiceTask> tasks;
  if (!options.choices.empty()) {
    KIVI_ASSIGN_OR_RETURN(tasks, read_choices(options.choices));
    KIVI_ASSIGN_OR_RETURN(const std::string bytes, read_eval_file("choices", options.choices));
    choices_hash = content_hash(bytes);
  }
  std::string layer_bits_hash;
  if (!options.engine.kv_layer_bits.empty()) {
    KIVI_ASSIGN_OR_RETURN(const std::string table,
                          read_eval_file("kv-layer-bits", options.engine.kv_layer_bits));
    layer_bits_hash = content_hash(table);
  }
  KIVI_ASSIGN_OR_RETURN(const std::string model, model_hash(options.engine.model));
  KIVI_ASSIGN_OR_RETURN(EvalResults results,
                        EvalResults::open(options.results, model, content_hash(text)));
  Evaluation evaluation(options, std::move(text), std::move(tasks), news);
  const std::vector<EvalCell> cells = grid_of(options);
  std::vector<EvalFigures> all;
  for (const EvalCell& cell : cells) {
    Json settings = settings_of(options, cell, choices_hash);
    if (!layer_bits_hash.empty() && has_groups(cell.format))
      settings["layer_bits"] = layer_bits_hash;
    if (const Json* known = results.find(settings)) {
      all.push_back(*known);
      continue;
    }
    Result<Json> figures = evaluation.measure(cell);
    if (!figures.ok()) {
      if (cells.size() == 1 || !refusal(figures.error())) return figures.error();
      std::string name = cell.format;
      if (cell.group != 0) name += fmt::format(" G{}", cell.group);
      if (cell.residual != 0) name += fmt::format(" R{}", cell.residual);
      all.push_back({{"format", name}, {"refused", figures.error().message}});
      continue;
    }
    KIVI_RETURN_IF_ERROR(results.add(settings, *figures));
    all.push_back(std::move(figures).value());
  }
  return all;
}

}  // namespace kivi
