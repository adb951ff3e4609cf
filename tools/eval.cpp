// `kivi eval`: perplexity of a model on a text file, for one or several formats of the key-value
// store, as a table and as JSON.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "engine/load.h"
#include "tools/commands.h"
#include "tools/perplexity.h"

namespace kivi {

namespace {

struct EvalOptions {
  EngineConfig engine;
  std::string text;                             // file
  std::vector<std::string> formats = {"auto"};  // --kv-cache-dtype
  std::string prefill = "stream";
  int window = 1024;  // tokens
  int windows = 0;    // 0: all
  int chunk = 0;      // 0: 1 token; fp16: 256, which reads the same numbers
  std::string json;   // file
};

// One format's figures.
struct EvalRow {
  std::string format;  // "kivi4 G32 R128"
  int chunk = 0;
  int windows = 0;
  Perplexity perplexity;
  double seconds = 0;
};

void add_options(CLI::App& app, EvalOptions& o) {
  app.add_option("model", o.engine.model, "a Hugging Face folder or a GGUF file")->required();
  app.add_option("--text", o.text, "text file; stories are separated by <|story|> lines")
      ->required();
  app.add_option("--windows", o.windows, "windows to score, 0: all")->check(CLI::Range(0, 1 << 20));
  app.add_option("--window", o.window, "tokens a window")->check(CLI::Range(2, 1 << 20));
  app.add_option("--kv-cache-dtype", o.formats,
                 "auto|fp16|fp8|kivi4|kivi2|kivi-k4v2|kivi-k2v4, several with commas")
      ->delimiter(',');
  app.add_option("--kivi-group-size", o.engine.kivi_group_size, "G: 32, 64 or 128");
  app.add_option("--kivi-residual-length", o.engine.kivi_residual_length,
                 "R: newest tokens in 16 bits, a multiple of G");
  app.add_option("--kivi-prefill", o.prefill,
                 "stream: the history is read quantized, as in decoding; exact: in 16 bits")
      ->check(CLI::IsMember({"exact", "stream"}));
  app.add_option("--chunk", o.chunk,
                 "tokens of a window in a step, 0: 1 (fp16: 256). Tokens of the same step are read "
                 "in 16 bits, so only 1 measures a quantized format")
      ->check(CLI::Range(0, 1 << 16));
  app.add_option("--max-num-seqs", o.engine.max_num_seqs, "windows in a step");
  app.add_option("--kv-cache-memory-bytes", o.engine.kv_cache_memory_bytes, "0: the default");
  app.add_option("--device", o.engine.device, "auto|cuda|cpu");
  app.add_option("--dtype", o.engine.dtype, "auto|float32|float16|bfloat16");
  app.add_option("--threads", o.engine.threads, "CPU threads, 0: all");
  app.add_option("--json", o.json, "file for the figures");
}

Result<std::string> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  if (!file || !(text << file.rdbuf()))
    return Error{ErrorCode::not_found, fmt::format("--text {}: cannot be read", path), "text"};
  return text.str();
}

Result<EvalRow> evaluate(const EvalOptions& o, const std::string& format, const std::string& text) {
  EngineConfig config = o.engine;
  config.kv_cache_dtype = format;
  config.kivi_prefill = o.prefill == "exact" ? PrefillMode::exact : PrefillMode::stream;
  config.prefill_chunk_tokens = o.chunk != 0 ? o.chunk : format == "fp16" ? 256 : 1;
  config.max_num_batched_tokens = std::max(512, config.max_num_seqs + config.prefill_chunk_tokens);
  config.max_num_queued_reqs = 1 << 20;
  config.max_num_queued_tokens = int64_t(1) << 40;
  ASSIGN_OR_RETURN(const std::unique_ptr<LoadedModel> model, load_model(config, {}));
  const auto windows = windows_of(stories_of(text), *model->tokenizer, o.window, o.windows);
  if (windows.empty())
    return Error{ErrorCode::invalid,
                 fmt::format("--text {}: holds no window of {} tokens", o.text, o.window), "text"};
  const int64_t rows_in_all = int64_t(windows.size()) * o.window;
  const bool terminal = ::isatty(STDERR_FILENO) == 1;
  const auto begin = std::chrono::steady_clock::now();
  const auto progress = [&](int64_t rows) {
    if (terminal) fmt::print(stderr, "\r{}: {:3.0f} %", format, 100.0 * rows / rows_in_all);
  };
  EvalRow row;
  ASSIGN_OR_RETURN(row.perplexity, measure_perplexity(*model->engine, windows, progress));
  if (terminal) fmt::print(stderr, "\r{:40}\r", "");
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  row.format = model->plan.format;
  row.chunk = config.prefill_chunk_tokens;
  row.windows = int(windows.size());
  row.seconds = seconds.count();
  return row;
}

// "x first" and "change" compare with the first row: the ratio of perplexities, and the mean change
// of a token's negative log likelihood, up or down.
void print_table(const std::vector<EvalRow>& rows) {
  fmt::print("{:<18} {:>5} {:>7} {:>8} {:>9} {:>10} {:>8} {:>8} {:>9}\n", "format", "chunk",
             "windows", "tokens", "nll", "perplexity", "x first", "change", "tokens/s");
  for (const EvalRow& r : rows) {
    const Perplexity& p = r.perplexity;
    const Perplexity& first = rows[0].perplexity;
    fmt::print("{:<18} {:>5} {:>7} {:>8} {:>9.5f} {:>10.4f} {:>8.4f} {:>8.4f} {:>9.0f}\n", r.format,
               r.chunk, r.windows, p.tokens, p.nll, p.perplexity, p.perplexity / first.perplexity,
               mean_change(p, first), double(p.tokens) / r.seconds);
  }
}

Status write_json(const EvalOptions& o, const std::vector<EvalRow>& rows) {
  nlohmann::ordered_json document = {
      {"model", o.engine.model}, {"text", o.text}, {"window", o.window}, {"prefill", o.prefill}};
  for (const EvalRow& r : rows)
    document["results"].push_back({{"format", r.format},
                                   {"chunk", r.chunk},
                                   {"windows", r.windows},
                                   {"tokens", r.perplexity.tokens},
                                   {"nll", r.perplexity.nll},
                                   {"perplexity", r.perplexity.perplexity},
                                   {"change", mean_change(r.perplexity, rows[0].perplexity)},
                                   {"seconds", r.seconds}});
  std::ofstream file(o.json);
  if (!(file << document.dump(1) << '\n'))
    return Error{ErrorCode::invalid, fmt::format("--json {}: cannot be written", o.json), "json"};
  return ok_status();
}

Status evaluate_all(const EvalOptions& o) {
  ASSIGN_OR_RETURN(const std::string text, read_file(o.text));
  std::vector<EvalRow> rows;
  for (const std::string& format : o.formats) {
    ASSIGN_OR_RETURN(EvalRow row, evaluate(o, format, text));
    rows.push_back(std::move(row));
  }
  print_table(rows);
  return o.json.empty() ? ok_status() : write_json(o, rows);
}

}  // namespace

int run_eval(const Arguments& args) {
  EvalOptions options;
  CLI::App app("Perplexity of a model on a text, by format of the key-value store.", "kivi eval");
  add_options(app, options);
  try {
    app.parse(Arguments(args.rbegin(), args.rend()));  // CLI11 takes the last word first
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : kExitUsage;
  }
  const Status status = evaluate_all(options);
  return status.ok() ? 0 : report(status.error());
}

}  // namespace kivi
