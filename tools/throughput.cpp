// SPDX-License-Identifier: Apache-2.0
// kivi bench throughput MODEL: how fast the engine is, without a server.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/version.h"
#include "bench/structured_work.h"
#include "bench/throughput_report.h"
#include "tools/commands.h"

namespace kivi {
namespace {

std::string describe(const LengthRange& range) {
  return range.min == range.max ? std::to_string(range.min)
                                : fmt::format("{}..{}", range.min, range.max);
}

// Tokens of the longest prompt that a run may have: the last turn's.
int64_t longest_prompt(const ThroughputOptions& t) {
  return t.prefix_len + int64_t(t.turns) * t.prompt_len.max +
         int64_t(t.turns - 1) * t.output_len.max;
}

// Every request is submitted by us: no queue limit may refuse one.
void widen_queues(Settings& settings) {
  const ThroughputOptions& t = settings.throughput;
  EngineConfig& e = settings.engine;
  e.max_num_queued_reqs = std::max(e.max_num_queued_reqs, t.num_prompts);
  e.max_num_queued_tokens =
      std::max(e.max_num_queued_tokens, int64_t(t.num_prompts) * longest_prompt(t));
}

Status check_lengths(const ThroughputOptions& options, int max_model_len) {
  const int64_t longest = longest_prompt(options) + options.output_len.max;
  if (longest <= max_model_len) return ok_status();
  return Error{
      ErrorCode::invalid,
      fmt::format("a conversation is up to {} tokens long (--prefix-len, and --prompt-len and "
                  "--output-len for each of --turns), must be at most the model's {}",
                  longest, max_model_len),
      "prompt-len"};
}

// The first steps of a process touch memory for the first time; they are not measured.
Status warm_up(Engine& engine, uint64_t seed) {
  const ThroughputOptions few{.num_prompts = 2, .prompt_len = {16, 16}, .output_len = {8, 8}};
  const auto run = measure_throughput(engine, few, seed, 2, -1);
  return run.ok() ? ok_status() : Status(run.error());
}

// Bytes by part: as planned, and what the device says is taken at the end.
nlohmann::ordered_json memory_json(const LoadedModel& model) {
  const MemoryPlan& p = model.plan;
  return {{"weights", p.weights},
          {"pages", p.pages},
          {"residual", p.residual},
          {"sinks", p.sinks},
          {"staging", p.staging},
          {"layerwise", p.layerwise},
          {"workspace", p.workspace},
          {"tokens_capacity", p.tokens_capacity},
          {"bytes_per_token", p.bytes_per_token},
          {"device_used", device_memory_used(model)}};
}

// The phases of starting up, and all of it, in seconds.
nlohmann::ordered_json startup_json(const std::vector<LoadPhase>& phases) {
  nlohmann::ordered_json out;
  double total = 0;
  for (const LoadPhase& phase : phases) {
    out[phase.name] = phase.seconds;
    total += phase.seconds;
  }
  out["total"] = total;
  return out;
}

void print_startup(const LoadedModel& model) {
  double total = 0;
  std::string text;
  for (const LoadPhase& phase : model.phases) {
    text += (text.empty() ? "" : ", ") + describe(phase);
    total += phase.seconds;
  }
  fmt::print("start-up {:.2f} s: {}\n", total, text);
}

Status write_json(const Settings& settings, const LoadedModel& model,
                  const std::vector<ThroughputRun>& runs) {
  const ThroughputOptions& t = settings.throughput;
  nlohmann::ordered_json out;
  out["version"] = KIVI_VERSION;
  out["model"] = model.served.name;
  out["device"] = model.plan.device;
  out["kv_cache"] = model.plan.format;
  out["num_prompts"] = t.num_prompts;
  out["prompt_len"] = describe(t.prompt_len);
  out["output_len"] = describe(t.output_len);
  out["turns"] = t.turns;
  out["prefix_len"] = t.prefix_len;
  out["structured"] = t.structured;
  out["max_num_seqs"] = settings.engine.max_num_seqs;
  out["max_num_batched_tokens"] = settings.engine.max_num_batched_tokens;
  out["startup_s"] = startup_json(model.phases);
  out["memory_bytes"] = memory_json(model);
  out["runs"] = nlohmann::ordered_json::array();
  for (const ThroughputRun& run : runs) out["runs"].push_back(throughput_json(run));
  return write_file("json", settings.json, out.dump(2) + "\n");
}

}  // namespace

int run_throughput(const Arguments& args) {
  Settings settings;
  if (const auto code = read_settings(kThroughput, args, settings)) return *code;
  const ThroughputOptions& options = settings.throughput;
  widen_queues(settings);
  const auto loaded = load_with_progress(settings.engine);
  if (!loaded.ok()) return report(loaded.error());
  LoadedModel& model = **loaded;
  Engine& engine = *model.engine;
  if (const Status s = check_lengths(options, engine.model().max_model_len); !s.ok())
    return report(s.error());

  fmt::print("{} on {}, cache {}, at most {} sequences and {} rows a step\n", model.served.name,
             model.plan.device, model.plan.format, settings.engine.max_num_seqs,
             settings.engine.max_num_batched_tokens);
  print_startup(model);
  fmt::print("{} requests a run, prompt {} tokens, output {} tokens\n\n", options.num_prompts,
             describe(options.prompt_len), describe(options.output_len));

  if (const Status s = warm_up(engine, settings.engine.seed); !s.ok()) return report(s.error());
  std::unique_ptr<StructuredWork> work;
  ConstraintSource constraint;
  if (options.structured) {
    auto made = StructuredWork::make(*model.served.tokenizer, engine.model().vocab_size);
    if (!made.ok()) return report(made.error());
    work = std::move(made).value();
    constraint = [&work] { return work->begin(); };
  }
  std::vector<int> in_flight = options.concurrency;
  if (in_flight.empty()) in_flight.push_back(options.num_prompts);
  std::vector<ThroughputRun> runs;
  for (const int n : in_flight) {
    auto run =
        measure_throughput(engine, options, settings.engine.seed, n, int(runs.size()), constraint);
    if (!run.ok()) return report(run.error());
    runs.push_back(std::move(run).value());
  }
  fmt::print("{}", throughput_text(runs));
  if (!options.trace.empty())
    if (const Status s = write_file("trace", options.trace, trace_lines(runs.back().trace));
        !s.ok())
      return report(s.error());
  if (settings.json.empty()) return 0;
  const Status status = write_json(settings, model, runs);
  return status.ok() ? 0 : report(status.error());
}

}  // namespace kivi
