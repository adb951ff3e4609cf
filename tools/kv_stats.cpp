// SPDX-License-Identifier: Apache-2.0
// `kivi kv-stats` repeats the KIVI paper's study on any model and text: how keys and values are
// distributed, and what quantizing them along either axis costs. docs/kv-stats.md describes the
// measurements.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

#include "study/kv_stats_page.h"
#include "study/kv_stats_report.h"
#include "tools/commands.h"

namespace kivi {

namespace {

struct KvStatsCommand {
  KvStatsOptions options;
  std::string layers = "all";
  bool no_perplexity = false;
  std::string json, html;  // files
};

void add_options(CLI::App& app, KvStatsCommand& c) {
  KvStatsOptions& o = c.options;
  app.add_option("model", o.engine.model, "Name a Hugging Face folder or a GGUF file.")->required();
  app.add_option("--text", o.text,
                 "Read the text from this file. Lines <|story|> separate its stories.")
      ->required();
  app.add_option("--tokens", o.tokens, "Read at most this many tokens of the text.")
      ->capture_default_str();
  app.add_option("--window", o.window,
                 "Let this many tokens attend to each other; a multiple of 128.")
      ->capture_default_str();
  app.add_option("--layers", c.layers,
                 "Study these layers: all, or numbers and ranges such as 0,4,7-9.")
      ->capture_default_str();
  app.add_option("--kivi-group-size", o.group,
                 "Use this group size G for attention and perplexity: 32, 64 or 128.")
      ->capture_default_str();
  app.add_option("--outlier-factor", o.outlier_factor,
                 "Call a channel an outlier if its magnitude is at least this many times the "
                 "median of its head.")
      ->capture_default_str();
  app.add_flag("--no-perplexity", c.no_perplexity,
               "Report statistics only. Do not simulate quantization, and recommend no format.");
  app.add_option("--nll-rise-max", o.thresholds.nll_rise_max,
                 "Recommend only formats that raise the loss by at most this many nats a token.")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  app.add_option("--device", o.engine.device,
                 "Compute on cuda or on the cpu (auto = CUDA if this build supports it and a GPU "
                 "is present).");
  app.add_option(
      "--dtype", o.engine.dtype,
      "Store the weights as float32, float16 or bfloat16 (auto = the type in the checkpoint).");
  app.add_option("--threads", o.engine.threads,
                 "Use this many CPU threads (0 = one for each core).");
  app.add_option("--json", c.json, "Write all figures to this file as JSON (empty = no file).");
  app.add_option("--html", c.html,
                 "Write a page with tables, plots and heat maps to this file (empty = no file).");
}

Status write_file(const char* flag, const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  if ((file << text) && file.flush()) return ok_status();
  return Error{ErrorCode::invalid,
               fmt::format("--{} is \"{}\", must be a file that can be written", flag, path), flag};
}

Status run(KvStatsCommand& c) {
  KIVI_ASSIGN_OR_RETURN(c.options.layers, parse_layers(c.layers));
  c.options.perplexity = !c.no_perplexity;
  const bool terminal = ::isatty(STDERR_FILENO) == 1;
  KIVI_ASSIGN_OR_RETURN(const KvStatsReport report, study(c.options, [&](const std::string& line) {
                          if (terminal) fmt::print(stderr, "\r\033[K{}", line);
                        }));
  fmt::print("{}", kv_stats_text(report));
  if (!c.json.empty())
    KIVI_RETURN_IF_ERROR(write_file("json", c.json, kv_stats_json(report).dump(1) + "\n"));
  if (!c.html.empty()) KIVI_RETURN_IF_ERROR(write_file("html", c.html, kv_stats_page(report)));
  return ok_status();
}

}  // namespace

int run_kv_stats(const Arguments& args) {
  KvStatsCommand command;
  CLI::App app(
      "Studies how a model's keys and values are distributed and what quantizing them costs.",
      "kivi kv-stats");
  add_options(app, command);
  try {
    app.parse(Arguments(args.rbegin(), args.rend()));  // CLI11 takes the last word first
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : kExitUsage;
  }
  const Status status = run(command);
  return status.ok() ? 0 : report(status.error());
}

}  // namespace kivi
