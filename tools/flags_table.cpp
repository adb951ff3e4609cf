// The table of flags: names, defaults (those of the structs), ranges, help. The only place to touch
// when a setting is added.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "tools/flags.h"

namespace kivi {
namespace {

using nlohmann::ordered_json;

constexpr int kIntMax = std::numeric_limits<int>::max();

template <class T>
std::optional<T> parse_number(const std::string& text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

// T: an integer type, or std::optional of one.
template <class T>
FlagValue integer(T& field, int64_t min, int64_t max) {
  return {.kind = FlagKind::integer,
          .set = [&field, min, max](const std::string& text) -> std::optional<std::string> {
            const auto value = parse_number<int64_t>(text);
            if (!value || *value < min || *value > max)
              return max == std::numeric_limits<int64_t>::max() || max == kIntMax
                         ? fmt::format("an integer of at least {}", min)
                         : fmt::format("an integer in [{}, {}]", min, max);
            field = static_cast<T>(*value);
            return std::nullopt;
          },
          .get = [&field]() -> ordered_json {
            if constexpr (std::is_integral_v<T>) {
              return field;
            } else {
              return field ? ordered_json(*field) : ordered_json(nullptr);
            }
          }};
}

FlagValue seed(uint64_t& field) {
  return {.kind = FlagKind::integer,
          .set = [&field](const std::string& text) -> std::optional<std::string> {
            const auto value = parse_number<uint64_t>(text);
            if (!value) return "an integer in [0, 2^64)";
            field = *value;
            return std::nullopt;
          },
          .get = [&field] { return ordered_json(field); }};
}

// T: double, or std::optional<double>. NaN is in no range.
template <class T>
FlagValue number(T& field, double min, double max) {
  return {.kind = FlagKind::number,
          .set = [&field, min, max](const std::string& text) -> std::optional<std::string> {
            const auto value = parse_number<double>(text);
            if (!value || !(*value >= min && *value <= max))
              return std::isinf(max) ? fmt::format("a number of at least {}", min)
                                     : fmt::format("a number in [{}, {}]", min, max);
            field = *value;
            return std::nullopt;
          },
          .get = [&field]() -> ordered_json {
            if constexpr (std::is_same_v<T, double>) {
              return field;
            } else {
              return field ? ordered_json(*field) : ordered_json(nullptr);
            }
          }};
}

FlagValue text(std::string& field) {
  return {.kind = FlagKind::text,
          .set = [&field](const std::string& text) -> std::optional<std::string> {
            field = text;
            return std::nullopt;
          },
          .get = [&field] { return ordered_json(field); }};
}

// `not_built`: values of the contract that this version refuses by name.
FlagValue choice(std::string& field, std::vector<std::string> choices,
                 std::vector<std::string> not_built = {}) {
  const auto has = [](const std::vector<std::string>& words, const std::string& word) {
    return std::find(words.begin(), words.end(), word) != words.end();
  };
  return {.kind = FlagKind::text,
          .set = [=, &field](const std::string& text) -> std::optional<std::string> {
            if (!has(choices, text))
              return fmt::format("one of {}{}", fmt::join(choices, ", "),
                                 has(not_built, text) ? " (not built in this version)" : "");
            field = text;
            return std::nullopt;
          },
          .get = [&field] { return ordered_json(field); }};
}

template <class Enum>
FlagValue choice(Enum& field, std::vector<std::pair<std::string, Enum>> choices) {
  return {.kind = FlagKind::text,
          .set = [&field, choices](const std::string& text) -> std::optional<std::string> {
            std::vector<std::string> names;
            for (const auto& [name, value] : choices) {
              if (name == text) {
                field = value;
                return std::nullopt;
              }
              names.push_back(name);
            }
            return fmt::format("one of {}", fmt::join(names, ", "));
          },
          .get = [&field, choices]() -> ordered_json {
            for (const auto& [name, value] : choices)
              if (value == field) return name;
            return nullptr;
          }};
}

FlagValue boolean(bool& field) {
  return {.kind = FlagKind::boolean,
          .set = [&field](const std::string& text) -> std::optional<std::string> {
            const bool yes = text == "true" || text == "1" || text == "yes" || text == "on";
            const bool no = text == "false" || text == "0" || text == "no" || text == "off";
            if (!yes && !no) return "true or false";
            field = yes;
            return std::nullopt;
          },
          .get = [&field] { return ordered_json(field); }};
}

FlagValue list(std::vector<std::string>& field) {
  return {.kind = FlagKind::list,
          .set = [&field](const std::string& text) -> std::optional<std::string> {
            field.push_back(text);
            return std::nullopt;
          },
          .clear = [&field] { field.clear(); },
          .get = [&field] { return ordered_json(field); }};
}

// Calls take(part) for each part between commas, until one returns false.
template <class F>
bool each_part(const std::string& text, F&& take) {
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    if (!take(text.substr(begin, end - begin))) return false;
    begin = end + 1;
  }
  return true;
}

// "embed,norm".
FlagValue words(std::vector<std::string>& field) {
  return {.kind = FlagKind::text,
          .set = [&field](const std::string& text) -> std::optional<std::string> {
            std::vector<std::string> values;
            if (!each_part(text, [&](const std::string& part) {
                  values.push_back(part);
                  return !part.empty();
                }))
              return "words, separated by commas";
            field = std::move(values);
            return std::nullopt;
          },
          .get = [&field] { return ordered_json(fmt::format("{}", fmt::join(field, ","))); }};
}

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
              return "SEQUENCESxTOKENS of at least 1x2, separated by commas";
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

// "1,2,4".
FlagValue integers(std::vector<int>& field, int min) {
  return {.kind = FlagKind::text,
          .set = [&field, min](const std::string& text) -> std::optional<std::string> {
            std::vector<int> values;
            for (size_t begin = 0; begin <= text.size();) {
              const size_t end = std::min(text.find(',', begin), text.size());
              const auto value = parse_number<int>(text.substr(begin, end - begin));
              if (!value || *value < min)
                return fmt::format("integers of at least {}, separated by commas", min);
              values.push_back(*value);
              begin = end + 1;
            }
            field = std::move(values);
            return std::nullopt;
          },
          .get = [&field] { return ordered_json(fmt::format("{}", fmt::join(field, ","))); }};
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

// "1073741824", "512MiB", "8GiB", "40GB".
template <class T>
FlagValue bytes(T& field, int64_t min) {
  return {.kind = FlagKind::bytes,
          .set = [&field, min](const std::string& text) -> std::optional<std::string> {
            static constexpr std::pair<std::string_view, int64_t> kUnits[] = {
                {"KiB", 1LL << 10}, {"MiB", 1LL << 20}, {"GiB", 1LL << 30},
                {"KB", 1'000},      {"MB", 1'000'000},  {"GB", 1'000'000'000}};
            std::string digits = text;
            int64_t unit = 1;
            for (const auto& [name, size] : kUnits) {
              if (!digits.ends_with(name)) continue;
              digits.resize(digits.size() - name.size());
              unit = size;
              break;
            }
            const auto count = parse_number<int64_t>(digits);
            if (!count || *count < 0 || *count > (int64_t(1) << 50) / unit || *count * unit < min)
              return fmt::format("bytes, at least {} (suffixes KiB, MiB, GiB, KB, MB, GB)", min);
            field = static_cast<T>(*count * unit);
            return std::nullopt;
          },
          .get = [&field] { return ordered_json(field); }};
}

Flag without_config(Flag flag) {
  flag.in_config = false;
  return flag;
}

std::vector<Flag> general_flags(Settings& s) {
  const std::string group = "General";
  Flag model{"model", "MODEL",      "a Hugging Face folder, a .gguf file, or a folder with one",
             group,   kAllCommands, text(s.engine.model)};
  model.positional = true;
  return {
      model,
      without_config({"config", "FILE", "JSON file of settings; see configs/", group,
                      kEngineCommands, text(s.config_file)}),
      without_config({"dry-run", "", "print the memory plan and exit", group, kEngineCommands,
                      boolean(s.dry_run)}),
      {"log-level", "LEVEL", "trace, debug, info, warning or error", group,
       kEngineCommands | kKernels,
       choice(s.server.log_level, {"trace", "debug", "info", "warning", "error"})},
      {"log-format", "text|json", "one line a message, on standard error", group,
       kEngineCommands | kKernels, choice(s.server.log_format, {"text", "json"})},
  };
}

std::vector<Flag> model_flags(Settings& s) {
  const std::string group = "Model";
  EngineConfig& e = s.engine;
  return {
      {"tokenizer", "DIR", "folder of the tokenizer; empty: the model's own", group,
       kEngineCommands, text(e.tokenizer)},
      {"chat-template", "FILE",
       "Jinja template of chats; empty: the model's own; none: the model takes no chats", group,
       kServe | kGenerate, text(e.chat_template)},
      {"dtype", "TYPE", "weights: auto (the checkpoint's), float32, float16 or bfloat16", group,
       kEngineCommands | kKernels, choice(e.dtype, {"auto", "float32", "float16", "bfloat16"})},
      {"load-format", "FORMAT", "auto, safetensors, gguf, or dummy (random weights)", group,
       kEngineCommands, choice(e.load_format, {"auto", "safetensors", "gguf", "dummy"})},
      {"max-model-len", "N", "tokens of prompt + output; 0: the model's own maximum", group,
       kEngineCommands, integer(e.max_model_len, 0, kIntMax)},
      {"seed", "N", "for requests that bring none: mixed with a request counter", group,
       kEngineCommands, seed(e.seed)},
      {"device", "auto|cuda|cpu", "where to compute; auto: CUDA where it is built and present",
       group, kEngineCommands | kKernels, choice(e.device, {"auto", "cuda", "cpu"})},
      {"threads", "N", "threads of the CPU backend; 0: all cores", group,
       kEngineCommands | kKernels, integer(e.threads, 0, 1024)},
      {"enforce-eager", "", "CUDA: launch every kernel, no graphs", group, kEngineCommands,
       boolean(e.enforce_eager)},
      {"deterministic", "", "CUDA: batch-invariant matrix products", group, kServe},
      {"tensor-parallel-size", "N", "GPUs of this host to split the model over", group, kServe},
  };
}

std::vector<Flag> cache_flags(Settings& s) {
  const std::string group = "KV cache";
  EngineConfig& e = s.engine;
  return {
      {"kv-cache-dtype", "FORMAT",
       "auto (kivi2 for MHA, kivi4 for GQA and MQA), fp16, fp8, kivi4, kivi2, kivi-k4v2, kivi-k2v4",
       group, kEngineCommands,
       choice(e.kv_cache_dtype,
              {"auto", "fp16", "fp8", "kivi4", "kivi2", "kivi-k4v2", "kivi-k2v4"})},
      {"kivi-group-size", "G", "values that share a scale and a minimum: 32, 64 or 128", group,
       kEngineCommands | kKernels, integer(e.kivi_group_size, 32, 128)},
      {"kivi-residual-length", "R", "newest tokens kept in 16 bits; a multiple of the group size",
       group, kEngineCommands | kKernels, integer(e.kivi_residual_length, 32, 1024)},
      {"kivi-prefill", "exact|stream",
       "exact: a prompt attends in 16 bits until its last chunk; stream: quantize chunk by chunk",
       group, kEngineCommands,
       choice<PrefillMode>(e.kivi_prefill,
                           {{"exact", PrefillMode::exact}, {"stream", PrefillMode::stream}})},
      {"kv-cache-memory-bytes", "BYTES",
       "pages, residual and staging; 0: on CUDA by gpu-memory-utilization, on the CPU 512 MiB",
       group, kEngineCommands, bytes(e.kv_cache_memory_bytes, 0)},
      {"gpu-memory-utilization", "X", "CUDA: share of the device's memory that is taken", group,
       kEngineCommands, number(e.gpu_memory_utilization, 0.05, 1)},
      {"enable-prefix-caching", "", "share pages of equal prompt beginnings", group, kServe},
  };
}

std::vector<Flag> scheduler_flags(Settings& s) {
  const std::string group = "Scheduling";
  EngineConfig& e = s.engine;
  return {
      {"max-num-seqs", "N", "sequences in a step, and residual slots", group, kEngineCommands,
       integer(e.max_num_seqs, 1, 4096)},
      {"max-num-batched-tokens", "N",
       "rows of a step; at least max-num-seqs + prefill-chunk-tokens", group, kEngineCommands,
       integer(e.max_num_batched_tokens, 1, 1 << 20)},
      {"prefill-chunk-tokens", "N", "longer prompts are computed in chunks of this length", group,
       kEngineCommands, integer(e.prefill_chunk_tokens, 1, 1 << 20)},
      {"prefill-staging-tokens", "N", "kivi-prefill exact: tokens in flight of chunked prompts",
       group, kEngineCommands, integer(e.prefill_staging_tokens, 0, 1 << 24)},
      {"scheduling-policy", "fair|fcfs|priority",
       "Choose which waiting request runs next: fair shares tokens between API keys (between "
       "client "
       "addresses without keys), fcfs goes by arrival, priority goes by the request's priority",
       group, kEngineCommands,
       choice<SchedulingPolicy>(e.scheduling_policy, {{"fair", SchedulingPolicy::fair},
                                                      {"fcfs", SchedulingPolicy::fcfs},
                                                      {"priority", SchedulingPolicy::priority}})},
      {"max-num-queued-reqs", "N", "waiting requests; more are refused with 503", group,
       kEngineCommands, integer(e.max_num_queued_reqs, 0, kIntMax)},
      {"max-num-queued-tokens", "N", "prompt tokens of waiting requests; more are refused", group,
       kEngineCommands, integer(e.max_num_queued_tokens, 0, std::numeric_limits<int64_t>::max())},
      {"max-logprobs", "N", "largest `logprobs` that a request may ask for", group, kEngineCommands,
       integer(e.max_logprobs, 0, 1024)},
  };
}

std::vector<Flag> server_flags(Settings& s) {
  const std::string group = "Server";
  ServerConfig& c = s.server;
  return {
      {"host", "ADDRESS", "address to listen on, HTTP and gRPC", group, kServe, text(c.host)},
      {"port", "N", "HTTP; 0: any free port, -1: no HTTP", group, kServe,
       integer(c.port, -1, 65535)},
      {"grpc-port", "N", "gRPC; 0: any free port, -1: no gRPC", group, kServe,
       integer(c.grpc_port, -1, 65535)},
      {"served-model-name", "NAME", "name in the API; empty: the model folder's name", group,
       kServe, text(c.served_model_name)},
      {"strict-params", "", "unknown request fields are an error (400)", group, kServe,
       boolean(c.strict_params)},
      {"enable-log-requests", "", "log each request", group, kServe,
       boolean(c.enable_log_requests)},
      {"metrics-prefix", "NAME", "first part of metric names: kivi, or vllm for its tools", group,
       kServe, text(c.metrics_prefix)},
      {"io-threads", "N", "threads of the HTTP server", group, kServe,
       integer(c.io_threads, 1, 256)},
  };
}

std::vector<Flag> access_flags(Settings& s) {
  const std::string group = "Access";
  ServerConfig& c = s.server;
  return {
      {"api-key", "KEY", "a key that clients must send; repeatable; none: open", group, kServe,
       list(c.api_keys)},
      {"api-key-file", "FILE", "keys, one a line, besides --api-key", group, kServe,
       text(s.api_key_file)},
      {"admin-api-key", "KEY", "key of the admin endpoints", group, kServe},
      {"metrics-require-key", "", "/metrics needs an API key too", group, kServe,
       boolean(c.metrics_require_key)},
      {"allowed-origins", "ORIGIN", "CORS origin, repeatable; none: CORS is off", group, kServe,
       list(c.allowed_origins)},
      {"ssl-keyfile", "FILE", "TLS private key", group, kServe},
      {"ssl-certfile", "FILE", "TLS certificate chain", group, kServe},
  };
}

std::vector<Flag> limit_flags(Settings& s) {
  const std::string group = "Limits";
  ServerConfig& c = s.server;
  return {
      {"shutdown-timeout", "SECONDS", "running requests may finish after SIGTERM", group, kServe,
       integer(c.shutdown_timeout, 0, 86400)},
      {"max-body-bytes", "BYTES", "largest request body; more is 413", group, kServe,
       bytes(c.max_body_bytes, 1024)},
      {"max-connections", "N", "open HTTP connections", group, kServe,
       integer(c.max_connections, 1, 1 << 20)},
      {"header-timeout", "SECONDS", "to send a request's headers and body", group, kServe,
       integer(c.header_timeout, 1, 86400)},
      {"write-timeout", "SECONDS", "a client may leave our bytes unread", group, kServe,
       integer(c.write_timeout, 1, 86400)},
      {"idle-timeout", "SECONDS", "a kept-alive connection may be silent", group, kServe,
       integer(c.idle_timeout, 1, 86400)},
      {"request-timeout", "SECONDS", "from accept to the last token; 0: none", group, kServe,
       integer(c.request_timeout, 0, 86400)},
      {"limit-requests-per-minute", "N",
       "Refuse completions of an API key (of a client address without keys) beyond this many a "
       "minute with 429 (0 = off)",
       group, kServe, integer(c.limit_requests_per_minute, 0, kIntMax)},
      {"limit-tokens-per-minute", "N",
       "Refuse completions of an API key (of a client address without keys) that has used this "
       "many "
       "prompt and output tokens a minute with 429 (0 = off)",
       group, kServe, integer(c.limit_tokens_per_minute, 0, std::numeric_limits<int64_t>::max())},
      {"limit-concurrent-requests", "N",
       "Refuse completions of an API key (of a client address without keys) while this many of it "
       "run or wait with 429 (0 = off)",
       group, kServe, integer(c.limit_concurrent_requests, 0, kIntMax)},
  };
}

std::vector<Flag> generate_flags(Settings& s) {
  const std::string group = "Generation";
  GenerateOptions& g = s.generate;
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  std::vector<Flag> flags = {
      {"prompt", "TEXT", "the text to continue; - reads standard input", group, kGenerate,
       text(g.prompt), "p"},
      {"prompt-ids", "IDS", "token ids instead of a text: 1,42,7", group, kGenerate,
       integers(g.prompt_ids, 0)},
      {"chat", "", "the prompt is a user's message: goes through the model's chat template", group,
       kGenerate, boolean(g.chat)},
      {"system", "TEXT", "with --chat: the system message before it", group, kGenerate,
       text(g.system)},
      {"ids", "", "print token ids instead of text", group, kGenerate, boolean(g.ids)},
      {"max-tokens", "N", "longest output", group, kGenerate, integer(g.max_tokens, 0, kIntMax)},
      {"min-tokens", "N", "no end of text before this many", group, kGenerate,
       integer(g.min_tokens, 0, kIntMax)},
      {"ignore-eos", "", "do not stop at the end of text", group, kGenerate, boolean(g.ignore_eos)},
      {"stop", "TEXT", "stop string, repeatable", group, kGenerate, list(g.stop)},
      {"temperature", "X", "0: greedy; unset: the model's, else 1", group, kGenerate,
       number(g.temperature, 0, kInfinity)},
      {"top-p", "X", "(0, 1]; unset: the model's, else 1", group, kGenerate, number(g.top_p, 0, 1)},
      {"top-k", "N", "0: off; unset: the model's, else 0", group, kGenerate,
       integer(g.top_k, 0, kIntMax)},
      {"min-p", "X", "[0, 1), relative to the most probable token", group, kGenerate,
       number(g.min_p, 0, 1)},
      {"repetition-penalty", "X", "above 1: seen tokens become less likely", group, kGenerate,
       number(g.repetition_penalty, 0, kInfinity)},
      {"presence-penalty", "X", "once for a token in the output", group, kGenerate,
       number(g.presence_penalty, -2, 2)},
      {"frequency-penalty", "X", "for each time a token is in the output", group, kGenerate,
       number(g.frequency_penalty, -2, 2)},
  };
  for (Flag& flag : flags) flag.in_config = false;
  return flags;
}

std::vector<Flag> throughput_flags(Settings& s) {
  const std::string group = "Benchmark";
  ThroughputOptions& t = s.throughput;
  std::vector<Flag> flags = {
      {"num-prompts", "N", "requests of a run", group, kThroughput,
       integer(t.num_prompts, 1, 1 << 24)},
      {"prompt-len", "N|MIN:MAX", "tokens of a prompt (random ids); MIN:MAX: uniform", group,
       kThroughput, length_range(t.prompt_len)},
      {"output-len", "N|MIN:MAX", "tokens of an output (end of text is ignored)", group,
       kThroughput, length_range(t.output_len)},
      {"concurrency", "LIST", "requests in flight, a run each: 1,2,4; unset: all at once", group,
       kThroughput, integers(t.concurrency, 1)},
      {"json", "FILE", "write the figures", group, kThroughput | kKernels, text(s.json)},
      {"trace", "FILE", "write the steps of the last run, a line of JSON each", group, kThroughput,
       text(t.trace)},
  };
  for (Flag& flag : flags) flag.in_config = false;
  return flags;
}

std::vector<Flag> kernel_flags(Settings& s) {
  const std::string group = "Kernels";
  KernelBenchmarkOptions& k = s.kernels;
  std::vector<Flag> flags = {
      {"ops", "LIST", fmt::format("unset: all; of {}", fmt::join(kernel_op_names(), ", ")), group,
       kKernels, words(k.ops)},
      {"formats", "LIST", "caches to measure: fp16,kivi2; unset: all", group, kKernels,
       words(k.formats)},
      {"rows", "LIST", "rows of a step, for ops that know no cache; unset: by the device", group,
       kKernels, integers(k.rows, 1)},
      {"caches", "LIST", "sequences x tokens: 8x4096,64x1024; unset: by the device", group,
       kKernels, caches(k.caches)},
  };
  for (Flag& flag : flags) flag.in_config = false;
  return flags;
}

}  // namespace

std::vector<Flag> make_flags(Settings& settings) {
  std::vector<Flag> all;
  for (auto* rows : {general_flags, server_flags, access_flags, limit_flags, generate_flags,
                     throughput_flags, kernel_flags, model_flags, cache_flags, scheduler_flags}) {
    for (Flag& flag : rows(settings)) all.push_back(std::move(flag));
  }
  return all;
}

}  // namespace kivi
