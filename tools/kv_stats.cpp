// `kivi kv-stats`: the KIVI paper's study of how keys and values are distributed and what
// quantizing them along either axis costs, on any model and text; docs/kv-stats.md says what is
// measured how.
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
  app.add_option("model", o.engine.model, "a Hugging Face folder or a GGUF file")->required();
  app.add_option("--text", o.text, "text file; stories are separated by <|story|> lines")
      ->required();
  app.add_option("--tokens", o.tokens, "tokens of the text, at most")->capture_default_str();
  app.add_option("--window", o.window, "tokens that attend to each other, a multiple of 128")
      ->capture_default_str();
  app.add_option("--layers", c.layers, "all, or numbers and ranges: 0,4,7-9")
      ->capture_default_str();
  app.add_option("--kivi-group-size", o.group, "G of attention and perplexity: 32, 64 or 128")
      ->capture_default_str();
  app.add_option("--outlier-factor", o.outlier_factor,
                 "a channel is an outlier from so many times its head's median on")
      ->capture_default_str();
  app.add_flag("--no-perplexity", c.no_perplexity,
               "only statistics: no perplexity by simulation, no recommendation");
  app.add_option("--nll-rise-max", o.thresholds.nll_rise_max,
                 "rise of the loss, nats a token, that a recommended format may cost")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  app.add_option("--device", o.engine.device, "auto|cuda|cpu");
  app.add_option("--dtype", o.engine.dtype, "auto|float32|float16|bfloat16");
  app.add_option("--threads", o.engine.threads, "CPU threads, 0: all");
  app.add_option("--json", c.json, "file for all figures");
  app.add_option("--html", c.html, "file for a page with tables, plots and heat maps");
}

Status write_file(const char* flag, const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  if ((file << text) && file.flush()) return ok_status();
  return Error{ErrorCode::invalid,
               fmt::format("--{} is \"{}\", expected a file that can be written", flag, path),
               flag};
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
  CLI::App app("How a model's keys and values are distributed, and what quantizing them costs.",
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
