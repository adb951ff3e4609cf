// `kivi eval`: what the formats of the key-value store cost a model in quality, as a table and as
// JSON; docs/benchmarks/perplexity.md says what is measured how.
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
                 "auto|fp16|fp8|kivi4|kivi2|kivi-k4v2|kivi-k2v4, several with commas")
      ->delimiter(',');
  app.add_option("--kivi-group-size", o.groups, "G: 32, 64 or 128; several with commas")
      ->delimiter(',');
  app.add_option("--kivi-residual-length", o.residuals,
                 "R: newest tokens in 16 bits, a multiple of G; several with commas")
      ->delimiter(',');
  app.add_option("--chunk", o.chunk,
                 "tokens of a window in a step, 0: 1 (fp16: 256). Tokens of the same step are read "
                 "in 16 bits, so only 1 measures a quantized format")
      ->check(CLI::Range(0, 1 << 16));
}

void add_metrics(CLI::App& app, EvalOptions& o) {
  app.add_option("--windows", o.windows, "windows to score, 0: all")->check(CLI::Range(0, 1 << 20));
  app.add_option("--window", o.window, "tokens a window")->check(CLI::Range(2, 1 << 20));
  app.add_option("--stride", o.stride,
                 "also perplexity by windows that move on by so many tokens, each predicting what "
                 "is new in it; 0: not")
      ->check(CLI::Range(0, 1 << 20));
  app.add_flag("--divergence", o.divergence,
               "also KL divergence and agreement of the most likely token with the fp16 cache");
  app.add_option("--reference-bytes", o.reference_bytes,
                 "memory for the fp16 cache's logits, at most");
  app.add_option("--passkey", o.passkey.lengths,
                 "also pass key retrieval, in prompts of so many tokens; several with commas")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 20));
  app.add_option("--passkey-depths", o.passkey.depths,
                 "where the key stands: 0 the beginning, 1 the end; several with commas")
      ->delimiter(',')
      ->check(CLI::Range(0.0, 1.0));
  app.add_option("--passkey-trials", o.passkey.trials, "keys for each length and depth")
      ->check(CLI::Range(1, 1000));
  app.add_option("--passkey-distractors", o.passkey.distractors,
                 "wrong keys whose log probabilities are compared; 0: none are")
      ->check(CLI::Range(0, 100));
  app.add_option("--choices", o.choices,
                 "also multiple-choice tasks: a file of JSON lines with context, choices, answer");
}

void add_options(CLI::App& app, EvalCommand& c) {
  EvalOptions& o = c.options;
  app.add_option("model", o.engine.model, "a Hugging Face folder or a GGUF file")->required();
  app.add_option("--text", o.text, "text file; stories are separated by <|story|> lines")
      ->required();
  add_grid(app, o);
  add_metrics(app, o);
  app.add_option("--kivi-prefill", c.prefill,
                 "stream: the history is read quantized, as in decoding; exact: in 16 bits")
      ->check(CLI::IsMember({"exact", "stream"}));
  app.add_option("--max-num-seqs", o.engine.max_num_seqs, "windows in a step");
  app.add_option("--kv-cache-memory-bytes", o.engine.kv_cache_memory_bytes, "0: the default");
  app.add_option("--device", o.engine.device, "auto|cuda|cpu");
  app.add_option("--dtype", o.engine.dtype, "auto|float32|float16|bfloat16");
  app.add_option("--threads", o.engine.threads, "CPU threads, 0: all");
  app.add_option("--results", o.results,
                 "file of JSON lines, a line a measured cell; cells it has are not measured again");
  app.add_option("--json", c.json, "file for the figures");
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
    return Error{ErrorCode::invalid, fmt::format("--json {}: cannot be written", c.json), "json"};
  return ok_status();
}

}  // namespace

int run_eval(const Arguments& args) {
  EvalCommand command;
  CLI::App app("What the formats of the key-value store cost a model in quality.", "kivi eval");
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
