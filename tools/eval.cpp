// SPDX-License-Identifier: Apache-2.0
// `kivi eval` measures what each format of the KV cache costs a model in quality. It prints a table
// and writes JSON. docs/benchmarks/perplexity.md describes the measurements.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <string>

#include "study/eval_report.h"
#include "study/eval_run.h"
#include "tools/commands.h"

namespace kivi {

namespace {

struct EvalCommand {
  EvalOptions options;
  std::string prefill = "stream";
  std::string json;  // file
};

void add_grid(CLI::App& app, EvalOptions& o) {
  app.add_option("--kv-cache-dtype", o.formats,
                 "Measure these cache formats, separated by commas. The names are those of kivi "
                 "serve; additions may follow, as in kivi2+s32+p8+bias+rotation.")
      ->delimiter(',');
  app.add_option(
         "--kivi-group-size", o.groups,
         "Measure these group sizes G, separated by commas: 32, 64, 128 (0 = the format's own).")
      ->delimiter(',');
  app.add_option("--kivi-residual-length", o.residuals,
                 "Measure these residual lengths R in tokens, separated by commas. Each must be a "
                 "multiple of G (0 = the format's own).")
      ->delimiter(',');
  app.add_option(
         "--chunk", o.chunk,
         "Compute this many tokens of a window in a step (0 = 1 token, 256 for fp16). Tokens of "
         "one step read each other in 16 bits, so only 1 measures a quantized format.")
      ->check(CLI::Range(0, 1 << 16));
}

void add_metrics(CLI::App& app, EvalOptions& o) {
  app.add_option("--windows", o.windows, "Score this many windows of the text (0 = all).")
      ->check(CLI::Range(0, 1 << 20));
  app.add_option("--window", o.window, "Cut the text into windows of this many tokens.")
      ->check(CLI::Range(2, 1 << 20));
  app.add_option("--stride", o.stride,
                 "Also report sliding-window perplexity with this stride in tokens (0 = off).")
      ->check(CLI::Range(0, 1 << 20));
  app.add_flag("--divergence", o.divergence,
               "Also report how far the predictions are from those with the fp16 cache: KL "
               "divergence and the share of equal top tokens.");
  app.add_option("--reference-bytes", o.reference_bytes,
                 "Use at most this many bytes of memory for the logits of the fp16 cache.");
  app.add_option("--passkey", o.passkey.lengths,
                 "Also measure pass key retrieval in prompts of these lengths in tokens, separated "
                 "by commas (empty = off).")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 20));
  app.add_option("--passkey-depths", o.passkey.depths,
                 "Put the pass key at these places, separated by commas (0 = beginning of the "
                 "prompt, 1 = end).")
      ->delimiter(',')
      ->check(CLI::Range(0.0, 1.0));
  app.add_option("--passkey-trials", o.passkey.trials,
                 "Try this many pass keys for each length and depth.")
      ->check(CLI::Range(1, 1000));
  app.add_option(
         "--passkey-distractors", o.passkey.distractors,
         "Compare the log probability of the pass key with that of this many wrong keys (0 = off).")
      ->check(CLI::Range(0, 100));
  app.add_option("--choices", o.choices,
                 "Also score multiple-choice tasks from this file of JSON lines with context, "
                 "choices and answer (empty = off).");
}

void add_options(CLI::App& app, EvalCommand& c) {
  EvalOptions& o = c.options;
  app.add_option("model", o.engine.model, "Name a Hugging Face folder or a GGUF file.")->required();
  app.add_option("--text", o.text,
                 "Read the text from this file. Lines <|story|> separate its stories.")
      ->required();
  add_grid(app, o);
  add_metrics(app, o);
  app.add_option("--kivi-prefill", c.prefill,
                 "Read the history quantized, as in decoding (stream), or in 16 bits (exact).")
      ->check(CLI::IsMember({"exact", "stream"}));
  app.add_option("--max-num-seqs", o.engine.max_num_seqs,
                 "Compute at most this many windows in a step.");
  app.add_option("--kv-cache-memory-bytes", o.engine.kv_cache_memory_bytes,
                 "Reserve this many bytes for the KV cache (0 = the default of kivi serve).");
  app.add_option("--device", o.engine.device,
                 "Compute on cuda or on the cpu (auto = CUDA if this build supports it and a GPU "
                 "is present).");
  app.add_option(
      "--dtype", o.engine.dtype,
      "Store the weights as float32, float16 or bfloat16 (auto = the type in the checkpoint).");
  app.add_option("--threads", o.engine.threads,
                 "Use this many CPU threads (0 = one for each core).");
  app.add_option("--results", o.results,
                 "Append each measured cell to this file of JSON lines, and skip the cells that it "
                 "already holds (empty = no file).");
  app.add_option("--json", c.json, "Write the figures to this file as JSON (empty = no file).");
}

Status evaluate(EvalCommand& c) {
  c.options.prefill = c.prefill == "exact" ? PrefillMode::exact : PrefillMode::stream;
  if (c.options.stride > c.options.window)
    return Error{ErrorCode::invalid,
                 fmt::format("--stride is {}, must be at most --window {}", c.options.stride,
                             c.options.window),
                 "stride"};
  const bool terminal = ::isatty(STDERR_FILENO) == 1;
  KIVI_ASSIGN_OR_RETURN(const auto cells, run_evaluation(c.options, [&](const std::string& news) {
                          if (terminal) fmt::print(stderr, "\r{:50}\r{}", "", news);
                        }));
  fmt::print("{}", eval_table(cells));
  if (c.json.empty()) return ok_status();
  std::ofstream file(c.json);
  if (!(file << eval_json(c.options, cells).dump(1) << '\n'))
    return Error{ErrorCode::invalid,
                 fmt::format("--json {} cannot be written. Name a file that can be", c.json),
                 "json"};
  return ok_status();
}

}  // namespace

int run_eval(const Arguments& args) {
  EvalCommand command;
  CLI::App app("Measures what each format of the KV cache costs a model in quality.", "kivi eval");
  add_options(app, command);
  try {
    app.parse(Arguments(args.rbegin(), args.rend()));  // CLI11 takes the last word first
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : kExitUsage;
  }
  const Status status = evaluate(command);
  return status.ok() ? 0 : report(status.error());
}

}  // namespace kivi
