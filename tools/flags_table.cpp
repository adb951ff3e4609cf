// SPDX-License-Identifier: Apache-2.0
// The table of flags: names, defaults (those of the structs), ranges, help
// texts. To add a setting, add its field to a struct and its row here.
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

FlagValue choice(std::string& field, std::vector<std::string> choices) {
  return {.kind = FlagKind::text,
          .set = [&field, choices](const std::string& text) -> std::optional<std::string> {
            if (std::find(choices.begin(), choices.end(), text) == choices.end())
              return fmt::format("one of {}", fmt::join(choices, ", "));
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
              return "a list of words, separated by commas";
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
              return "a list of SEQUENCESxTOKENS of at least 1x2, separated by "
                     "commas";
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
                return fmt::format("a list of integers of at least {}, separated by commas", min);
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
              return fmt::format(
                  "a number of bytes of at least {} (suffixes "
                  "KiB, MiB, GiB, KB, MB, GB)",
                  min);
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
  Flag model{"model",
             "MODEL",
             "Name the model: a Hugging Face folder, a .gguf file, or a folder "
             "that holds one .gguf file.",
             group,
             kAllCommands,
             text(s.engine.model)};
  model.positional = true;
  return {
      model,
      without_config({"config", "FILE",
                      "Read settings from this JSON file; configs/ has "
                      "examples (empty = no file).",
                      group, kEngineCommands, text(s.config_file)}),
      without_config({"dry-run", "",
                      "Print how memory would be divided, and exit without "
                      "loading the weights.",
                      group, kEngineCommands, boolean(s.dry_run)}),
      {"log-level", "LEVEL",
       "Log messages of this level and above: trace, debug, info, warning or "
       "error.",
       group, kEngineCommands | kKernels,
       choice(s.server.log_level, {"trace", "debug", "info", "warning", "error"})},
      {"log-format", "text|json",
       "Write log messages to standard error as text or as JSON, one message a "
       "line.",
       group, kEngineCommands | kKernels, choice(s.server.log_format, {"text", "json"})},
  };
}

std::vector<Flag> model_flags(Settings& s) {
  const std::string group = "Model";
  EngineConfig& e = s.engine;
  return {
      {"tokenizer", "DIR",
       "Load the tokenizer from this folder (empty = the model's own "
       "tokenizer).",
       group, kEngineCommands, text(e.tokenizer)},
      {"chat-template", "FILE",
       "Format chats with the Jinja template in this file (empty = the model's "
       "own template, none "
       "= refuse chats).",
       group, kServe | kGenerate, text(e.chat_template)},
      {"dtype", "TYPE",
       "Store the weights as float32, float16 or bfloat16 (auto = the type in "
       "the checkpoint).",
       group, kEngineCommands | kKernels,
       choice(e.dtype, {"auto", "float32", "float16", "bfloat16"})},
      {"load-format", "FORMAT",
       "Read the checkpoint as safetensors or gguf, or fill the weights with "
       "random numbers "
       "(dummy); auto = detect the format.",
       group, kEngineCommands, choice(e.load_format, {"auto", "safetensors", "gguf", "dummy"})},
      {"max-model-len", "N",
       "Limit prompt and output of a request together to this many tokens (0 = "
       "the model's own "
       "maximum).",
       group, kEngineCommands, integer(e.max_model_len, 0, kIntMax)},
      {"seed", "N",
       "Seed the random numbers of requests that bring no seed of their own. "
       "The server mixes this "
       "seed with a request counter.",
       group, kEngineCommands, seed(e.seed)},
      {"device", "auto|cuda|cpu",
       "Compute on cuda or on the cpu (auto = CUDA if this build supports it "
       "and a GPU is "
       "present).",
       group, kEngineCommands | kKernels, choice(e.device, {"auto", "cuda", "cpu"})},
      {"threads", "N",
       "Use this many CPU threads to compute on the CPU (0 = one for each "
       "core).",
       group, kEngineCommands | kKernels, integer(e.threads, 0, 1024)},
      {"enforce-eager", "",
       "Launch CUDA kernels one by one instead of replaying CUDA graphs. This "
       "helps when "
       "debugging.",
       group, kEngineCommands, boolean(e.enforce_eager)},
  };
}

std::vector<Flag> cache_flags(Settings& s) {
  const std::string group = "KV cache";
  EngineConfig& e = s.engine;
  return {
      {"kv-cache-dtype", "FORMAT",
       "Store keys and values as fp16, fp8, kivi4, kivi2, kivi-k4v2 or "
       "kivi-k2v4 (auto = kivi2 for "
       "multi-head models, kivi4 for GQA and MQA models).",
       group, kEngineCommands,
       choice(e.kv_cache_dtype,
              {"auto", "fp16", "fp8", "kivi4", "kivi2", "kivi-k4v2", "kivi-k2v4"})},
      {"kivi-group-size", "G",
       "Share one scale and one minimum among this many quantized values: 32, "
       "64 or 128.",
       group, kEngineCommands | kKernels, integer(e.kivi_group_size, 32, 128)},
      {"kivi-residual-length", "R",
       "Keep up to this many of a sequence's newest tokens in 16 bits. The "
       "length must be a "
       "multiple of the group size.",
       group, kEngineCommands | kKernels, integer(e.kivi_residual_length, 32, 1024)},
      {"kivi-prefill", "exact|stream",
       "Choose how a prompt that is computed in chunks reads its own cache. "
       "exact = in 16 bits "
       "until the last chunk; stream = quantize each chunk before the next one "
       "reads it.",
       group, kEngineCommands,
       choice<PrefillMode>(e.kivi_prefill,
                           {{"exact", PrefillMode::exact}, {"stream", PrefillMode::stream}})},
      {"kv-cache-memory-bytes", "BYTES",
       "Reserve this many bytes for the KV cache: pages, residuals, staging "
       "and scratch (0 = "
       "derive "
       "from --gpu-memory-utilization on CUDA, 512 MiB on the CPU).",
       group, kEngineCommands, bytes(e.kv_cache_memory_bytes, 0)},
      {"gpu-memory-utilization", "X",
       "Use at most this share of the GPU's memory for weights, KV cache and "
       "workspace.",
       group, kEngineCommands, number(e.gpu_memory_utilization, 0.05, 1)},
  };
}

std::vector<Flag> scheduler_flags(Settings& s) {
  const std::string group = "Scheduling";
  EngineConfig& e = s.engine;
  return {
      {"max-num-seqs", "N",
       "Compute at most this many sequences in a step, and reserve a residual "
       "for each of them.",
       group, kEngineCommands, integer(e.max_num_seqs, 1, 4096)},
      {"max-num-batched-tokens", "N",
       "Compute at most this many tokens in a step; at least --max-num-seqs + "
       "--prefill-chunk-tokens.",
       group, kEngineCommands, integer(e.max_num_batched_tokens, 1, 1 << 20)},
      {"prefill-chunk-tokens", "N",
       "Compute prompts longer than this many tokens in chunks of this length.", group,
       kEngineCommands, integer(e.prefill_chunk_tokens, 1, 1 << 20)},
      {"prefill-staging-tokens", "N",
       "Keep at most this many prompt tokens in 16 bits while prompts are "
       "computed in chunks with "
       "--kivi-prefill exact (0 = quantize each chunk).",
       group, kEngineCommands, integer(e.prefill_staging_tokens, 0, 1 << 24)},
      {"prefill-scratch-bytes", "BYTES",
       "Use at most this much CUDA memory for one layer's quantized history in "
       "16 bits while a "
       "prompt chunk attends to it (0 = read the codes where they lie, which "
       "is slow).",
       group, kEngineCommands | kKernels, bytes(e.prefill_scratch_bytes, 0)},
      {"scheduling-policy", "fair|fcfs|priority",
       "Choose which waiting request runs next. fair shares tokens between API "
       "keys, or between "
       "client addresses if there are no keys; fcfs goes by arrival; priority "
       "goes by the "
       "priority field of the request.",
       group, kEngineCommands,
       choice<SchedulingPolicy>(e.scheduling_policy, {{"fair", SchedulingPolicy::fair},
                                                      {"fcfs", SchedulingPolicy::fcfs},
                                                      {"priority", SchedulingPolicy::priority}})},
      {"max-num-queued-reqs", "N",
       "Queue at most this many waiting requests; refuse more with status 503.", group,
       kEngineCommands, integer(e.max_num_queued_reqs, 0, kIntMax)},
      {"max-num-queued-tokens", "N",
       "Queue waiting requests with at most this many prompt tokens in all; "
       "refuse more with "
       "status 503.",
       group, kEngineCommands,
       integer(e.max_num_queued_tokens, 0, std::numeric_limits<int64_t>::max())},
      {"max-logprobs", "N",
       "Let a request ask for at most this many log probabilities for each "
       "token (0 = none).",
       group, kEngineCommands, integer(e.max_logprobs, 0, 1024)},
  };
}

std::vector<Flag> server_flags(Settings& s) {
  const std::string group = "Server";
  ServerConfig& c = s.server;
  return {
      {"host", "ADDRESS", "Listen for HTTP and gRPC on this address.", group, kServe, text(c.host)},
      {"port", "N", "Listen for HTTP on this port (0 = any free port, -1 = no HTTP).", group,
       kServe, integer(c.port, -1, 65535)},
      {"grpc-port", "N", "Listen for gRPC on this port (0 = any free port, -1 = no gRPC).", group,
       kServe, integer(c.grpc_port, -1, 65535)},
      {"served-model-name", "NAME",
       "Show the model under this name in the API (empty = the name of the "
       "model's folder or "
       "file).",
       group, kServe, text(c.served_model_name)},
      {"strict-params", "",
       "Refuse requests that hold an unknown field, with status 400. Without "
       "this flag the server "
       "ignores such fields.",
       group, kServe, boolean(c.strict_params)},
      {"tool-call-parser", "NAME",
       "Find tool calls in the answers to chats as this family of models "
       "writes them: hermes (also "
       "Qwen 2.5 and SmolLM2), llama3_json, mistral or pythonic (auto = as the "
       "chat template says, "
       "none = leave all calls in the text).",
       group, kServe,
       choice(c.tool_call_parser,
              {"auto", "none", "hermes", "llama3_json", "mistral", "pythonic"})},
      {"enable-log-requests", "", "Log each request when it ends.", group, kServe,
       boolean(c.enable_log_requests)},
      {"metrics-prefix", "NAME",
       "Begin the names of all metrics with this word: kivi, or vllm for "
       "dashboards made for vLLM.",
       group, kServe, text(c.metrics_prefix)},
      {"io-threads", "N", "Run the HTTP server on this many threads.", group, kServe,
       integer(c.io_threads, 1, 256)},
  };
}

std::vector<Flag> access_flags(Settings& s) {
  const std::string group = "Access";
  ServerConfig& c = s.server;
  return {
      {"api-key-file", "FILE",
       "Accept requests with any API key of this file, one key a line, besides "
       "those of --api-key "
       "(empty = no file). SIGHUP reads the file again.",
       group, kServe, text(s.api_key_file)},
      {"api-key", "KEY",
       "Accept requests with this API key. Repeat the flag for more keys. "
       "Every user of the "
       "machine "
       "can read it in the list of processes: prefer --api-key-file.",
       group, kServe, list(c.api_keys)},
      {"allow-open", "",
       "Serve without an API key on an address that other machines reach. "
       "Without this flag, such "
       "a "
       "start is refused.",
       group, kServe, boolean(c.allow_open)},
      {"metrics-require-key", "", "Require an API key for /metrics too.", group, kServe,
       boolean(c.metrics_require_key)},
      {"allowed-origins", "ORIGIN",
       "Allow web pages of this origin to call the API (CORS). Repeat the flag "
       "for more origins "
       "(none = send no CORS headers).",
       group, kServe, list(c.allowed_origins)},
      {"allowed-hosts", "NAME",
       "Accept this Host name on a loopback address, besides localhost and IP "
       "addresses. Repeat "
       "the "
       "flag for more names (* = accept any name).",
       group, kServe, list(c.allowed_hosts)},
      {"ssl-certfile", "FILE",
       "Speak TLS on both ports with this certificate and its chain, in PEM "
       "(empty = no TLS). "
       "SIGHUP "
       "reads the TLS files again.",
       group, kServe, text(c.ssl_certfile)},
      {"ssl-keyfile", "FILE",
       "Read the certificate's private key from this file, in PEM (empty = "
       "from --ssl-certfile).",
       group, kServe, text(c.ssl_keyfile)},
      {"ssl-ca-certs", "FILE",
       "Accept only clients with a certificate that one of these authorities "
       "has signed, in PEM "
       "(empty = ask for no certificate).",
       group, kServe, text(c.ssl_ca_certs)},
  };
}

std::vector<Flag> limit_flags(Settings& s) {
  const std::string group = "Limits";
  ServerConfig& c = s.server;
  return {
      {"shutdown-timeout", "SECONDS",
       "Let running requests finish for this many seconds after SIGTERM (0 = "
       "end them at once).",
       group, kServe, integer(c.shutdown_timeout, 0, 86400)},
      {"max-body-bytes", "BYTES", "Refuse request bodies larger than this, with status 413.", group,
       kServe, bytes(c.max_body_bytes, 1024)},
      {"max-body-bytes-in-flight", "BYTES",
       "Refuse a request with status 503 if the bodies of all HTTP requests "
       "together would exceed "
       "this many bytes.",
       group, kServe, bytes(c.max_body_bytes_in_flight, 1024)},
      {"max-tokenize-bytes", "BYTES", "Refuse to tokenize a text of more than this many bytes.",
       group, kServe, bytes(s.engine.max_tokenize_bytes, 1)},
      {"max-reply-bytes", "BYTES",
       "Refuse a request whose reply could be larger than this many bytes.", group, kServe,
       bytes(s.engine.max_reply_bytes, 1)},
      {"max-connections", "N", "Keep at most this many HTTP connections open.", group, kServe,
       integer(c.max_connections, 1, 1 << 20)},
      {"max-grpc-connections", "N",
       "Keep at most this many gRPC connections open, and at most half as many "
       "from one address.",
       group, kServe, integer(c.max_grpc_connections, 2, 1 << 20)},
      {"header-timeout", "SECONDS",
       "Close a connection if a request's headers and body take longer than "
       "this many seconds to "
       "arrive.",
       group, kServe, integer(c.header_timeout, 1, 86400)},
      {"write-timeout", "SECONDS",
       "Close a connection if the client does not read for this many seconds.", group, kServe,
       integer(c.write_timeout, 1, 86400)},
      {"idle-timeout", "SECONDS",
       "Close a kept-alive connection after this many seconds without a "
       "request.",
       group, kServe, integer(c.idle_timeout, 1, 86400)},
      {"request-timeout", "SECONDS",
       "End a request this many seconds after the server accepted it (0 = "
       "never).",
       group, kServe, integer(c.request_timeout, 0, 86400)},
      {"limit-requests-per-minute", "N",
       "Refuse a completion with status 429 if its API key (without keys: its "
       "client address) has "
       "sent more than this many in a minute (0 = off).",
       group, kServe, integer(c.limit_requests_per_minute, 0, kIntMax)},
      {"limit-tokens-per-minute", "N",
       "Refuse a completion with status 429 if its API key (without keys: its "
       "client address) has "
       "used more than this many prompt and output tokens in a minute (0 = "
       "off).",
       group, kServe, integer(c.limit_tokens_per_minute, 0, std::numeric_limits<int64_t>::max())},
      {"limit-concurrent-requests", "N",
       "Refuse a completion with status 429 if this many of its API key "
       "(without keys: of its "
       "client address) run or wait (0 = off).",
       group, kServe, integer(c.limit_concurrent_requests, 0, kIntMax)},
  };
}

std::vector<Flag> generate_flags(Settings& s) {
  const std::string group = "Generation";
  GenerateOptions& g = s.generate;
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  std::vector<Flag> flags = {
      {"prompt", "TEXT",
       "Continue this text. A single dash (-) reads the text from standard "
       "input.",
       group, kGenerate, text(g.prompt), "p"},
      {"prompt-ids", "IDS",
       "Continue these token ids instead of a text: 1,42,7 (empty = use "
       "--prompt).",
       group, kGenerate, integers(g.prompt_ids, 0)},
      {"chat", "", "Send the prompt as a user's message through the model's chat template.", group,
       kGenerate, boolean(g.chat)},
      {"system", "TEXT",
       "Put this system message before the prompt; needs --chat (empty = no "
       "system message).",
       group, kGenerate, text(g.system)},
      {"ids", "", "Print token ids instead of text.", group, kGenerate, boolean(g.ids)},
      {"max-tokens", "N", "Generate at most this many tokens.", group, kGenerate,
       integer(g.max_tokens, 0, kIntMax)},
      {"min-tokens", "N", "Forbid the end of text before this many tokens (0 = allow it at once).",
       group, kGenerate, integer(g.min_tokens, 0, kIntMax)},
      {"ignore-eos", "", "Keep generating after the model's end-of-text token.", group, kGenerate,
       boolean(g.ignore_eos)},
      {"stop", "TEXT",
       "Stop before this string appears in the output. Repeat the flag for "
       "more strings (none = no "
       "stop string).",
       group, kGenerate, list(g.stop)},
      {"temperature", "X",
       "Divide the logits by this temperature before sampling (0 = always take "
       "the likeliest "
       "token, unset = the model's default, else 1).",
       group, kGenerate, number(g.temperature, 0, kInfinity)},
      {"top-p", "X",
       "Sample from the likeliest tokens whose probabilities add up to this "
       "share, in (0, 1] (1 = "
       "off, unset = the model's default, else 1).",
       group, kGenerate, number(g.top_p, 0, 1)},
      {"top-k", "N",
       "Sample from this many likeliest tokens (0 = off, unset = the model's "
       "default, else 0).",
       group, kGenerate, integer(g.top_k, 0, kIntMax)},
      {"min-p", "X",
       "Drop tokens less likely than this share of the likeliest token's "
       "probability, in [0, 1) (0 "
       "= off).",
       group, kGenerate, number(g.min_p, 0, 1)},
      {"repetition-penalty", "X",
       "Make tokens of prompt and output less likely by this factor (1 = off, "
       "below 1 = more "
       "likely).",
       group, kGenerate, number(g.repetition_penalty, 0, kInfinity)},
      {"presence-penalty", "X",
       "Subtract this from the logit of each token that the output holds (0 = "
       "off).",
       group, kGenerate, number(g.presence_penalty, -2, 2)},
      {"frequency-penalty", "X",
       "Subtract this from a token's logit once for each time that the output "
       "holds the token (0 = "
       "off).",
       group, kGenerate, number(g.frequency_penalty, -2, 2)},
  };
  for (Flag& flag : flags) flag.in_config = false;
  return flags;
}

std::vector<Flag> throughput_flags(Settings& s) {
  const std::string group = "Benchmark";
  ThroughputOptions& t = s.throughput;
  std::vector<Flag> flags = {
      {"num-prompts", "N", "Send this many requests in each run.", group, kThroughput,
       integer(t.num_prompts, 1, 1 << 24)},
      {"prompt-len", "N|MIN:MAX",
       "Make prompts of this many random tokens. MIN:MAX draws each length "
       "uniformly.",
       group, kThroughput, length_range(t.prompt_len)},
      {"output-len", "N|MIN:MAX",
       "Generate this many tokens for each request; the end of text is "
       "ignored. MIN:MAX draws each "
       "length uniformly.",
       group, kThroughput, length_range(t.output_len)},
      {"concurrency", "LIST",
       "Make one run for each of these numbers of requests in flight: 1,2,4 "
       "(unset = one run with "
       "all requests at once).",
       group, kThroughput, integers(t.concurrency, 1)},
      {"json", "FILE", "Write the figures to this file as JSON (empty = no file).", group,
       kThroughput | kKernels, text(s.json)},
      {"trace", "FILE",
       "Write the steps of the last run to this file, one JSON object a line "
       "(empty = no file).",
       group, kThroughput, text(t.trace)},
  };
  for (Flag& flag : flags) flag.in_config = false;
  return flags;
}

std::vector<Flag> kernel_flags(Settings& s) {
  const std::string group = "Kernels";
  KernelBenchmarkOptions& k = s.kernels;
  std::vector<Flag> flags = {
      {"ops", "LIST",
       fmt::format("Measure these ops, of {} (unset = all ops).",
                   fmt::join(kernel_op_names(), ", ")),
       group, kKernels, words(k.ops)},
      {"formats", "LIST", "Measure these cache formats: fp16,kivi2 (unset = all formats).", group,
       kKernels, words(k.formats)},
      {"rows", "LIST",
       "Measure ops that do not read the cache with these numbers of rows "
       "(tokens) in a step "
       "(unset = sizes that suit the device).",
       group, kKernels, integers(k.rows, 1)},
      {"caches", "LIST",
       "Measure ops that read the cache with these caches, as sequences x "
       "tokens: 8x4096,64x1024 "
       "(unset = sizes that suit the device).",
       group, kKernels, caches(k.caches)},
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
