// SPDX-License-Identifier: Apache-2.0
// The rows of the table of flags for benchmarks and studies. What is asked of one run is no setting
// of a machine, so none of these is a key of a --config file.
#include "bench/client/text.h"
#include "tools/flag_values.h"

namespace kivi {
namespace {

// "8x4096,64x1024".
FlagValue caches(std::vector<CacheCase>& field) {
  return {.kind = FlagKind::text,
          .set = [&field](const std::string& text) -> std::optional<std::string> {
            std::vector<CacheCase> values;
            if (!each_part(text, [&](const std::string& part) {
                  const size_t x = part.find('x');
                  if (x == std::string::npos) return false;
                  const auto sequences = parse_number<int>(part.substr(0, x));
                  const auto tokens = parse_number<int>(part.substr(x + 1));
                  values.push_back({sequences.value_or(0), tokens.value_or(0)});
                  return values.back().sequences >= 1 && values.back().tokens >= 2;
                }))
              return "a list of SEQUENCESxTOKENS of at least 1x2, separated by commas";
            field = std::move(values);
            return std::nullopt;
          },
          .get = [&field]() -> ordered_json {
            std::string text;
            for (const CacheCase& c : field)
              text += fmt::format("{}{}x{}", text.empty() ? "" : ",", c.sequences, c.tokens);
            return text;
          }};
}

// "128", or "64:512" for a uniform distribution.
FlagValue length_range(LengthRange& field) {
  return {.kind = FlagKind::text,
          .set = [&field](const std::string& text) -> std::optional<std::string> {
            const size_t colon = text.find(':');
            const auto min = parse_number<int>(text.substr(0, colon));
            const auto max =
                colon == std::string::npos ? min : parse_number<int>(text.substr(colon + 1));
            if (!min || !max || *min < 1 || *max < *min)
              return "a number of tokens, or MIN:MAX with 1 <= MIN <= MAX";
            field = {*min, *max};
            return std::nullopt;
          },
          .get =
              [&field] {
                return ordered_json(field.min == field.max
                                        ? fmt::format("{}", field.min)
                                        : fmt::format("{}:{}", field.min, field.max));
              }};
}

// "all", "0,4,7-9".
FlagValue layers(std::vector<int>& field) {
  return {
      .kind = FlagKind::text,
      .set = [&field](const std::string& text) -> std::optional<std::string> {
        auto values = parse_layers(text);
        if (!values.ok()) return "all, or numbers and ranges such as 0,4,7-9";
        field = std::move(*values);
        return std::nullopt;
      },
      .get =
          [&field] {
            return ordered_json(field.empty() ? "all" : fmt::format("{}", fmt::join(field, ",")));
          }};
}

// "700", "3bits", "2.75bits,3.5bits".
FlagValue budgets(std::vector<TuneBudget>& field) {
  return {.kind = FlagKind::text,
          .set = [&field](const std::string& text) -> std::optional<std::string> {
            std::vector<TuneBudget> values;
            if (!each_part(text, [&](const std::string& part) {
                  const bool in_bits = part.ends_with("bits");
                  const auto amount =
                      parse_number<double>(in_bits ? part.substr(0, part.size() - 4) : part);
                  values.push_back({amount.value_or(0), in_bits});
                  return amount && *amount > 0 && *amount <= 1e9;
                }))
              return "a list of bytes a token (700) or bits a value (3bits), separated by commas";
            field = std::move(values);
            return std::nullopt;
          },
          .get = [&field]() -> ordered_json {
            std::string text;
            for (const TuneBudget& b : field)
              text += fmt::format("{}{:g}{}", text.empty() ? "" : ",", b.amount,
                                  b.in_bits ? "bits" : "");
            return text;
          }};
}

std::vector<Flag> without_config(std::vector<Flag> flags) {
  for (Flag& flag : flags) flag.in_config = false;
  return flags;
}

std::vector<Flag> flags_alone(std::vector<Flag> flags) {
  for (Flag& flag : flags) flag.in_config = flag.in_environment = false;
  return flags;
}

std::vector<Flag> throughput_flags(Settings& s) {
  const std::string group = "Benchmark";
  ThroughputOptions& t = s.throughput;
  return without_config({
      {"num-prompts", "N", "Send this many requests in each run.", group, kThroughput,
       integer(t.num_prompts, 1, 1 << 24)},
      {"prompt-len", "N|MIN:MAX",
       "Make prompts of this many random tokens. MIN:MAX draws each length uniformly.", group,
       kThroughput, length_range(t.prompt_len)},
      {"output-len", "N|MIN:MAX",
       "Generate this many tokens for each request; the end of text is ignored. MIN:MAX draws each "
       "length uniformly.",
       group, kThroughput, length_range(t.output_len)},
      {"prefix-len", "N", "Begin all prompts with the same N tokens, besides --prompt-len.", group,
       kThroughput, integer(t.prefix_len, 0, 1 << 24)},
      {"turns", "N",
       "Make a conversation of this many requests of each prompt. Every turn sends all that came "
       "before it, and --prompt-len new tokens.",
       group, kThroughput, integer(t.turns, 1, 1 << 16)},
      {"concurrency", "LIST",
       "Make one run for each of these numbers of conversations in flight: 1,2,4 (unset = one run "
       "with all at once).",
       group, kThroughput, numbers(t.concurrency, 1)},
      {"structured", "",
       "Bind every output to lines of JSON, so that every row of a step has a mask.", group,
       kThroughput, boolean(t.structured)},
      {"trace", "FILE",
       "Write the steps of the last run to this file, one JSON object a line (empty = no file).",
       group, kThroughput, text(t.trace)},
  });
}

std::vector<Flag> kernel_flags(Settings& s) {
  const std::string group = "Kernels";
  KernelBenchmarkOptions& k = s.kernels;
  return without_config({
      {"ops", "LIST",
       fmt::format("Measure these ops, of {} (unset = all ops).",
                   fmt::join(kernel_op_names(), ", ")),
       group, kKernels, words(k.ops)},
      {"formats", "LIST", "Measure these cache formats: fp16,kivi2 (unset = all formats).", group,
       kKernels, words(k.formats)},
      {"rows", "LIST",
       "Measure ops that do not read the cache with these numbers of rows (tokens) in a step "
       "(unset = sizes that suit the device).",
       group, kKernels, numbers(k.rows, 1)},
      {"caches", "LIST",
       "Measure ops that read the cache with these caches, as sequences x tokens: 8x4096,64x1024 "
       "(unset = sizes that suit the device).",
       group, kKernels, caches(k.caches)},
  });
}

std::vector<Flag> shared_flags(Settings& s) {
  const std::string group = "Output";
  std::vector<Flag> flags =
      without_config({{"json", "FILE", "Write the figures to this file as JSON (empty = no file).",
                       group, kThroughput | kKernels | kBenchServe | kStudies, text(s.json)}});
  for (Flag& flag : flags_alone(
           {{"html", "FILE", "Write a page with tables and plots to this file (empty = no file).",
             group, kBenchServe | kKvStats, text(s.html)},
            {"text", "FILE",
             "Read the text from this file (required). Lines <|story|> separate its stories.",
             "Text", kStudies, text(s.text)}}))
    flags.push_back(std::move(flag));
  return flags;
}

std::vector<Flag> load_server_flags(Settings& s) {
  const std::string group = "Server under load";
  load::ServeOptions& o = s.bench_serve;
  return flags_alone({
      {"api", "API", "Speak this API: completions or chat (OpenAI, over HTTP), or grpc (kivi.v1).",
       group, kBenchServe,
       choice<load::Api>(o.api, {{"completions", load::Api::completions},
                                 {"chat", load::Api::chat},
                                 {"grpc", load::Api::grpc}})},
      {"base-url", "URL",
       "Send HTTP requests to this OpenAI-compatible server: http://HOST[:PORT][/PATH].", group,
       kBenchServe, text(o.base_url)},
      {"grpc-target", "HOST:PORT", "Send gRPC requests to this server.", group, kBenchServe,
       text(o.target)},
      {"endpoint", "PATH",
       "Send HTTP requests to this path (empty = /v1/completions or /v1/chat/completions).", group,
       kBenchServe, text(o.endpoint)},
      {"model", "NAME", "Ask for this model (empty = the first model that the server lists).",
       group, kBenchServe, text(o.request.model)},
      {"api-key", "KEY", "Send this API key as a bearer token (empty = none).", group, kBenchServe,
       text(o.request.api_key)},
      {"extra-body", "JSON",
       "Add the fields of this JSON object to each HTTP request (empty = none).", group,
       kBenchServe, text(o.request.extra_body)},
      {"timeout", "SECONDS", "Give up a request after this many seconds, connecting included.",
       group, kBenchServe, number(o.request.timeout_s, 0.001, 86400)},
  });
}

std::vector<Flag> load_work_flags(Settings& s) {
  const std::string group = "Work";
  load::ServeOptions& o = s.bench_serve;
  load::ServeFlags& f = s.bench_serve_flags;
  return flags_alone({
      {"num-prompts", "N", "Send this many requests in each run (unset = 100; all of --trace).",
       group, kBenchServe, integer(f.num_prompts, 1, 1 << 24)},
      {"num-warmups", "N", "Send this many unmeasured requests before the first run (0 = none).",
       group, kBenchServe, integer(o.warmups, 0, 1 << 20)},
      {"seed", "N",
       "Seed the random prompts. Runs with the same seed send the same requests at every rate and "
       "concurrency.",
       group, kBenchServe, seed(o.work.seed)},
      {"input-len", "LENGTHS",
       "Make prompts of this many tokens: N, MIN:MAX (uniform), lognormal:MEAN[:SIGMA], or "
       "sharegpt (log-normal, mean 161) (unset = 128).",
       group, kBenchServe, text(f.input_len)},
      {"output-len", "LENGTHS",
       "Ask for outputs of this many tokens: the same forms; sharegpt has mean 338 (unset = 128).",
       group, kBenchServe, text(f.output_len)},
      {"sharegpt", "FILE",
       "Take prompts and output lengths from this ShareGPT JSON file instead of --input-len and "
       "--output-len (empty = no file).",
       group, kBenchServe, text(o.sharegpt)},
      {"tokenizer", "PATH",
       "Count the tokens of --sharegpt with the tokenizer of this folder or GGUF file (empty = 4 "
       "bytes a token).",
       group, kBenchServe, text(o.tokenizer)},
      {"max-len", "N", "Limit lengths that come from a distribution or a file to this many tokens.",
       group, kBenchServe, integer(o.length_max, 16, load::kTokensMax)},
      {"prompt-format", "ids|text",
       "Send prompts as random token ids (ids) or as random words (text); unset = ids, for chats "
       "text.",
       group, kBenchServe, choice(f.prompt_format, {"ids", "text"})},
      {"vocab-size", "N",
       "Draw token ids from the middle half of a vocabulary of this size (0 = the server's size, "
       "else 1000).",
       group, kBenchServe, integer(o.work.vocab_size, 0, 1 << 24)},
      {"prefix-len", "N", "Begin prompts with this many tokens in common (unset = none).", group,
       kBenchServe, integer(f.prefix_len, 0, load::kTokensMax)},
      {"prefix-count", "N", "Use this many different common beginnings (unset = 1).", group,
       kBenchServe, integer(f.prefix_count, 1, 1 << 20)},
      {"cancel-share", "X", "Cancel this share of the requests, from 0 to 1.", group, kBenchServe,
       number(o.work.cancel_share, 0, 1)},
      {"cancel-after", "N", "Cancel those requests after this many tokens.", group, kBenchServe,
       integer(o.work.cancel_after, 1, load::kTokensMax)},
      {"ignore-eos", "", "Generate outputs of exactly the length that --output-len gives.", group,
       kBenchServe, boolean(o.request.ignore_eos)},
      {"temperature", "X", "Send this sampling temperature (unset = the server's default).", group,
       kBenchServe, number(o.request.temperature, 0, 100)},
  });
}

std::vector<Flag> load_time_flags(Settings& s) {
  const std::string group = "Load";
  load::ServeOptions& o = s.bench_serve;
  load::ServeFlags& f = s.bench_serve_flags;
  std::vector<Flag> flags = flags_alone({
      {"request-rate", "LIST",
       "Send this many requests a second, one run for each rate: 1,2,4. inf = keep "
       "--max-concurrency requests in flight at all times (unset = inf).",
       group, kBenchServe, text(f.rates)},
      {"max-concurrency", "LIST",
       "Keep at most this many requests in flight, one run for each number: 1,8,32 (unset = no "
       "limit; at rate inf, all requests start at once). --concurrency is the same flag.",
       group, kBenchServe, numbers(o.concurrency, 1, 1 << 20)},
      {"arrivals", "poisson|constant|burst",
       "Space requests like a Poisson process (poisson), evenly (constant) or in bursts (burst); "
       "unset = poisson.",
       group, kBenchServe, choice(f.arrivals, {"poisson", "constant", "burst"})},
      {"burst-size", "N", "Send this many requests at once with --arrivals burst.", group,
       kBenchServe, integer(o.burst_size, 1, 1 << 20)},
      {"trace", "FILE",
       "Send requests at the times in this file, in seconds, one a line (empty = no file).", group,
       kBenchServe, text(o.trace)},
      {"threads", "N", "Run the load generator on this many threads.", group, kBenchServe,
       integer(o.threads, 1, 256)},
      {"goodput", "LIMITS",
       "Count a request as good if it keeps these limits in ms: ttft:200,tpot:50,e2el:5000 (empty "
       "= no limits).",
       group, kBenchServe, text(f.goodput)},
      {"save-detailed", "", "Add the figures of each request to the JSON file.", group, kBenchServe,
       boolean(o.detailed)},
      {"progress", "", "Show a progress bar if standard error is a terminal.", group, kBenchServe,
       boolean(o.progress)},
  });
  flags[1].alias = "concurrency";
  return flags;
}

std::vector<Flag> eval_flags(Settings& s) {
  const std::string group = "Evaluation";
  EvalOptions& o = s.eval;
  return flags_alone({
      {"kv-cache-dtype", "LIST",
       "Measure these cache formats. The names are those of kivi serve; additions may follow, as "
       "in "
       "kivi2+s32+p8+bias+rotation.",
       group, kEval, words(o.formats)},
      {"kivi-group-size", "LIST",
       "Measure these group sizes G: 32, 64, 128 (0 = the format's own).", group, kEval,
       numbers(o.groups, 0)},
      {"kivi-residual-length", "LIST",
       "Measure these residual lengths R in tokens. Each must be a multiple of G (0 = the format's "
       "own).",
       group, kEval, numbers(o.residuals, 0)},
      {"kivi-prefill", "exact|stream",
       "Read the history quantized, as in decoding (stream), or in 16 bits (exact).", group, kEval,
       choice<PrefillMode>(o.prefill,
                           {{"exact", PrefillMode::exact}, {"stream", PrefillMode::stream}})},
      {"chunk", "N",
       "Compute this many tokens of a window in a step (0 = 1 token, 256 for fp16). Tokens of one "
       "step read each other in 16 bits, so only 1 measures a quantized format.",
       group, kEval, integer(o.chunk, 0, 1 << 16)},
      {"windows", "N", "Score this many windows of the text (0 = all).", group, kEval,
       integer(o.windows, 0, 1 << 20)},
      {"window", "N", "Cut the text into windows of this many tokens.", group, kEval,
       integer(o.window, 2, 1 << 20)},
      {"stride", "N", "Also report sliding-window perplexity with this stride in tokens (0 = off).",
       group, kEval, integer(o.stride, 0, 1 << 20)},
      {"divergence", "",
       "Also report how far the predictions are from those with the fp16 cache and weights that "
       "are "
       "not quantized: KL divergence and the share of equal top tokens.",
       group, kEval, boolean(o.divergence)},
      {"reference-bytes", "BYTES",
       "Use at most this many bytes of memory for the logits of the fp16 cache.", group, kEval,
       bytes(o.reference_bytes, 0)},
      {"passkey", "LIST",
       "Also measure pass key retrieval in prompts of these lengths in tokens (empty = off).",
       group, kEval, numbers(o.passkey.lengths, 1, 1 << 20)},
      {"passkey-depths", "LIST",
       "Put the pass key at these depths (0 = beginning of the prompt, 1 = end).", group, kEval,
       numbers(o.passkey.depths, 0.0, 1.0)},
      {"passkey-trials", "N", "Try this many pass keys for each length and depth.", group, kEval,
       integer(o.passkey.trials, 1, 1000)},
      {"passkey-distractors", "N",
       "Compare the log probability of the pass key with that of this many wrong keys (0 = off).",
       group, kEval, integer(o.passkey.distractors, 0, 100)},
      {"choices", "FILE",
       "Also score multiple-choice tasks from this file of JSON lines with context, choices and "
       "answer (empty = off).",
       group, kEval, text(o.choices)},
      {"results", "FILE",
       "Append each measured cell to this file of JSON lines, and skip the cells that it already "
       "holds (empty = no file).",
       group, kEval, text(o.results)},
  });
}

std::vector<Flag> tune_flags(Settings& s) {
  const std::string group = "Tuning";
  TuneOptions& o = s.tune;
  return flags_alone({
      {"budget", "LIST",
       "Choose a table for each of these budgets (required). A budget is the bytes of pages a "
       "token "
       "takes in all layers, as kivi info prints them, or the bits of a value with its scale and "
       "minimum: 3bits.",
       group, kTune, budgets(o.budgets)},
      {"output", "FILE",
       "Write the table to this file, for --kv-layer-bits; needs a single budget (empty = no "
       "file).",
       group, kTune, text(o.output)},
      {"window", "N", "Cut the text into windows of this many tokens.", group, kTune,
       integer(o.window, 2, 1 << 20)},
      {"windows", "N", "Choose by the divergence over this many windows of the text.", group, kTune,
       integer(o.windows, 1, 1 << 20)},
      {"check-windows", "N",
       "Also measure the tables over this many further windows, which have no part in the choice "
       "(0 "
       "= none).",
       group, kTune, integer(o.check_windows, 0, 1 << 20)},
      {"reference-bytes", "BYTES",
       "Use at most this many bytes of memory for the logits of the fp16 cache.", group, kTune,
       bytes(o.reference_bytes, 0)},
  });
}

std::vector<Flag> kv_stats_flags(Settings& s) {
  const std::string group = "Study of keys and values";
  KvStatsOptions& o = s.kv_stats;
  return flags_alone({
      {"tokens", "N", "Read at most this many tokens of the text.", group, kKvStats,
       integer(o.tokens, 1, 1 << 24)},
      {"window", "N", "Let this many tokens attend to each other; a multiple of 128.", group,
       kKvStats, integer(o.window, 1, 1 << 20)},
      {"layers", "LIST", "Study these layers: all, or numbers and ranges such as 0,4,7-9.", group,
       kKvStats, layers(o.layers)},
      {"kivi-group-size", "G", "Use this group size for attention and perplexity: 32, 64 or 128.",
       group, kKvStats, integer(o.group, 32, 128)},
      {"outlier-factor", "X",
       "Call a channel an outlier if its magnitude is at least this many times the median of its "
       "head.",
       group, kKvStats, number(o.outlier_factor, 0, std::numeric_limits<double>::infinity())},
      {"perplexity", "",
       "Simulate quantization, report perplexity, and recommend a format. --no-perplexity reports "
       "statistics only.",
       group, kKvStats, boolean(o.perplexity)},
      {"nll-rise-max", "X",
       "Recommend only formats that raise the loss by at most this many nats a token, above 0.",
       group, kKvStats,
       number(o.thresholds.nll_rise_max, std::numeric_limits<double>::min(),
              std::numeric_limits<double>::infinity())},
  });
}

}  // namespace

std::vector<Flag> flags_of_measurements(Settings& settings) {
  std::vector<Flag> all;
  for (auto* rows : {throughput_flags, kernel_flags, load_server_flags, load_work_flags,
                     load_time_flags, eval_flags, kv_stats_flags, tune_flags, shared_flags}) {
    for (Flag& flag : rows(settings)) all.push_back(std::move(flag));
  }
  return all;
}

}  // namespace kivi
