// SPDX-License-Identifier: Apache-2.0
// The table of flags: names, defaults (those of the structs), ranges, help texts. To add a setting,
// add its field to a struct and its row here. The rows of benchmarks and studies are in
// flags_of_measurements.cpp.
#include "tools/flag_values.h"

namespace kivi {
namespace {

Flag without_config(Flag flag) {
  flag.in_config = false;
  return flag;
}

std::vector<Flag> general_flags(Settings& s) {
  const std::string group = "General";
  Flag model{
      "model",
      "MODEL",
      "Name the model: a Hugging Face folder, a .gguf file, or a folder that holds one .gguf file.",
      group,
      kModelCommands,
      text(s.engine.model)};
  model.positional = true;
  return {
      model,
      without_config({"config", "FILE",
                      "Read settings from this JSON file; configs/ has examples (empty = no file).",
                      group, kEngineCommands, text(s.config_file)}),
      without_config({"dry-run", "",
                      "Print how memory would be divided, and exit without loading the weights.",
                      group, kEngineCommands, boolean(s.dry_run)}),
      {"log-level", "LEVEL",
       "Log messages of this level and above: trace, debug, info, warning or error.", group,
       kEngineCommands | kKernels,
       choice(s.server.log_level, {"trace", "debug", "info", "warning", "error"})},
      {"log-format", "text|json",
       "Write log messages to standard error as text or as JSON, one message a line.", group,
       kEngineCommands | kKernels, choice(s.server.log_format, {"text", "json"})},
  };
}

std::vector<Flag> model_flags(Settings& s) {
  const std::string group = "Model";
  EngineConfig& e = s.engine;
  return {
      {"tokenizer", "DIR",
       "Load the tokenizer from this folder (empty = the model's own tokenizer).", group,
       kEngineCommands, text(e.tokenizer)},
      {"chat-template", "FILE",
       "Format chats with the Jinja template in this file (empty = the model's own template, none "
       "= refuse chats).",
       group, kServe | kGenerate, text(e.chat_template)},
      {"dtype", "TYPE",
       "Store the weights that are not quantized as float32, float16 or bfloat16 (auto = the type "
       "in the checkpoint).",
       group, kEngineCommands | kKernels | kStudies,
       choice(e.dtype, {"auto", "float32", "float16", "bfloat16"})},
      {"quantization", "FORMAT",
       "Quantize the layers' matrices of a 16-bit checkpoint to fp8 or int4 while it is loaded; "
       "auto = keep the checkpoint's own formats if the device multiplies them, none = dequantize.",
       group, kEngineCommands | kKernels | kStudies,
       choice(e.quantization, {"auto", "none", "fp8", "int4"})},
      {"load-format", "FORMAT",
       "Read the checkpoint as safetensors or gguf, or fill the weights with random numbers "
       "(dummy); auto = detect the format.",
       group, kEngineCommands, choice(e.load_format, {"auto", "safetensors", "gguf", "dummy"})},
      {"max-model-len", "N",
       "Limit prompt and output of a request together to this many tokens (0 = the model's own "
       "maximum).",
       group, kEngineCommands, integer(e.max_model_len, 0, kIntMax)},
      {"seed", "N",
       "Seed the random numbers of requests that bring no seed of their own. The server mixes this "
       "seed with a request counter.",
       group, kEngineCommands, seed(e.seed)},
      {"device", "auto|cuda|cpu",
       "Compute on cuda or on the cpu (auto = CUDA if this build supports it and a GPU is "
       "present).",
       group, kEngineCommands | kKernels | kStudies, choice(e.device, {"auto", "cuda", "cpu"})},
      {"threads", "N", "Use this many CPU threads to compute on the CPU (0 = one for each core).",
       group, kEngineCommands | kKernels | kStudies, integer(e.threads, 0, 1024)},
      {"enforce-eager", "",
       "Launch CUDA kernels one by one instead of replaying CUDA graphs. This helps when "
       "debugging.",
       group, kEngineCommands, boolean(e.enforce_eager)},
  };
}

std::vector<Flag> cache_flags(Settings& s) {
  const std::string group = "KV cache";
  EngineConfig& e = s.engine;
  std::string formats = "auto";
  for (const std::string_view name : kv_format_names()) formats.append(", ").append(name);
  const std::vector<std::pair<std::string, Switch>> switches = {
      {"auto", Switch::automatic}, {"on", Switch::on}, {"off", Switch::off}};
  return {
      {"kv-cache-dtype", "FORMAT",
       "Store keys and values in this format. kivi2.25 to kivi4.5 say their bits a value; kivi2, "
       "kivi4, kivi-k4v2 and kivi-k2v4 are the paper's formats (auto = kivi2.5 for multi-head "
       "models, kivi3.5 for GQA and MQA models, fp16 for head sizes other than 64, 96 and 128). "
       "Formats: " +
           formats + ".",
       group, kEngineCommands | kInfo | kTune, cache_format(e.kv_cache_dtype)},
      {"kv-layer-bits", "FILE",
       "Read from this file how many bits the keys and values of each layer have; kivi tune "
       "writes such files. All else follows --kv-cache-dtype (empty = the format's bits in every "
       "layer).",
       group, kEngineCommands | kEval | kInfo, text(e.kv_layer_bits)},
      {"kivi-group-size", "G",
       "Share one scale and one minimum among this many quantized values: 32, 64 or 128 (0 = the "
       "format's own).",
       group, kEngineCommands | kKernels | kTune, integer(e.kivi_group_size, 0, 128)},
      {"kivi-residual-length", "R",
       "Keep up to this many of a sequence's newest tokens in 16 bits. The length must be a "
       "multiple of the group size (0 = the format's own, 128).",
       group, kEngineCommands | kKernels | kTune, integer(e.kivi_residual_length, 0, 1024)},
      {"kv-sinks", "S",
       "Keep this many of a sequence's first tokens in 16 bits. The number must be a multiple of "
       "the group size (-1 = the format's own).",
       group, kEngineCommands | kKernels | kTune, integer(e.kv_sinks, -1, 1024)},
      {"kv-parameter-bits", "BITS",
       "Store each scale and each minimum in 8 or in 16 bits (0 = the format's own).", group,
       kEngineCommands | kKernels | kTune, integer(e.kv_parameter_bits, 0, 16)},
      {"kv-key-bias", "auto|on|off",
       "Correct attention logits for what the rounding of keys adds to them on average (auto = as "
       "the format says).",
       group, kEngineCommands | kKernels | kTune, choice<Switch>(e.kv_key_bias, switches)},
      {"kv-rotation", "auto|on|off",
       "Multiply queries, keys and values by a Hadamard matrix before they are stored (auto = as "
       "the format says).",
       group, kEngineCommands | kTune, choice<Switch>(e.kv_rotation, switches)},
      {"kivi-prefill", "exact|stream",
       "Choose how a prompt that is computed in chunks reads its own cache. exact = in 16 bits "
       "until the last chunk; stream = quantize each chunk before the next one reads it.",
       group, kEngineCommands,
       choice<PrefillMode>(e.kivi_prefill,
                           {{"exact", PrefillMode::exact}, {"stream", PrefillMode::stream}})},
      {"kv-cache-memory-bytes", "BYTES",
       "Reserve this many bytes for the KV cache: pages, residuals, staging and scratch (0 = "
       "derive from --gpu-memory-utilization on CUDA, 512 MiB on the CPU).",
       group, kEngineCommands | kEval | kTune, bytes(e.kv_cache_memory_bytes, 0)},
      {"enable-prefix-caching", "",
       "Keep the pages of ended requests while nothing else needs them, and let later requests "
       "that begin with the same tokens use them.",
       group, kEngineCommands, boolean(e.enable_prefix_caching)},
      {"prefix-cache-per-key", "",
       "Share kept pages only between requests of the same API key, or of the same client address "
       "if there are no keys.",
       group, kServe, boolean(e.prefix_cache_per_key)},
      {"kv-host-memory", "BYTES",
       "Also keep pages of the prefix cache in this many bytes of the host's memory, and copy "
       "them back for requests that begin with their tokens (0 = none).",
       group, kEngineCommands, bytes(e.kv_host_memory, 0)},
      {"kv-disk", "DIR",
       "Also keep pages of the prefix cache as files in this folder, so that they outlive the "
       "server; needs --kv-host-memory (empty = none).",
       group, kEngineCommands, text(e.kv_disk)},
      {"kv-disk-bytes", "BYTES",
       "Let the files of --kv-disk take at most this many bytes, and remove the least recently "
       "used ones.",
       group, kEngineCommands, bytes(e.kv_disk_bytes, 0)},
      {"kv-disk-key-file", "FILE",
       "Encrypt the files of --kv-disk (AES-256-GCM) with the key of this file, 64 hexadecimal "
       "digits (empty = no encryption).",
       group, kEngineCommands, text(e.kv_disk_key_file)},
      {"kv-disk-read-only", "",
       "Only read pages from --kv-disk, because another server writes to this folder.", group,
       kEngineCommands, boolean(e.kv_disk_read_only)},
      {"kv-fetch", "auto|fetch|compute",
       "Choose how a request gets first tokens whose pages are on the host or on disk, but not on "
       "the device. fetch = copy the pages back; compute = compute the tokens again; auto = "
       "whichever the measured rates say is faster.",
       group, kEngineCommands,
       choice<KvFetch>(e.kv_fetch, {{"auto", KvFetch::automatic},
                                    {"fetch", KvFetch::fetch},
                                    {"compute", KvFetch::compute}})},
      {"gpu-memory-utilization", "X",
       "Use at most this share of the GPU's memory for weights, KV cache and workspace.", group,
       kEngineCommands, number(e.gpu_memory_utilization, 0.05, 1)},
  };
}

std::vector<Flag> scheduler_flags(Settings& s) {
  const std::string group = "Scheduling";
  EngineConfig& e = s.engine;
  return {
      {"max-num-seqs", "N",
       "Compute at most this many sequences in a step, and reserve a residual for each of them.",
       group, kEngineCommands | kEval | kTune, integer(e.max_num_seqs, 1, 4096)},
      {"max-num-batched-tokens", "N",
       "Compute at most this many tokens in a step; at least --max-num-seqs + "
       "--prefill-chunk-tokens.",
       group, kEngineCommands, integer(e.max_num_batched_tokens, 1, 1 << 20)},
      {"prefill-chunk-tokens", "N",
       "Compute prompts longer than this many tokens in chunks of this length.", group,
       kEngineCommands, integer(e.prefill_chunk_tokens, 1, 1 << 20)},
      {"prefill-staging-tokens", "N",
       "Keep at most this many prompt tokens in 16 bits while prompts are computed in chunks with "
       "--kivi-prefill exact (0 = quantize each chunk).",
       group, kEngineCommands, integer(e.prefill_staging_tokens, 0, 1 << 24)},
      {"prefill-layerwise-tokens", "N",
       "With --kivi-prefill exact, compute prompts that --prefill-staging-tokens does not hold "
       "layer by layer, up to this many tokens, so that they attend in 16 bits too (0 = quantize "
       "each of their chunks).",
       group, kEngineCommands, integer(e.prefill_layerwise_tokens, 0, 1 << 24)},
      {"prefill-layerwise-percent", "N",
       "Use at most this percentage of the cache's memory for prompts that are computed layer by "
       "layer. This bounds their length too.",
       group, kEngineCommands, integer(e.prefill_layerwise_percent, 1, 50)},
      {"prefill-scratch-bytes", "BYTES",
       "Use at most this much CUDA memory for one layer's quantized history in 16 bits while a "
       "prompt chunk attends to it (0 = read the codes where they lie, which is slow).",
       group, kEngineCommands | kKernels, bytes(e.prefill_scratch_bytes, 0)},
      {"scheduling-policy", "fair|fcfs|priority",
       "Choose which waiting request runs next. fair shares tokens between API keys, or between "
       "client addresses if there are no keys; fcfs goes by arrival; priority goes by the "
       "priority field of the request.",
       group, kEngineCommands,
       choice<SchedulingPolicy>(e.scheduling_policy, {{"fair", SchedulingPolicy::fair},
                                                      {"fcfs", SchedulingPolicy::fcfs},
                                                      {"priority", SchedulingPolicy::priority}})},
      {"max-num-queued-reqs", "N",
       "Queue at most this many waiting requests; refuse more with status 503.", group,
       kEngineCommands, integer(e.max_num_queued_reqs, 0, kIntMax)},
      {"max-num-queued-tokens", "N",
       "Queue waiting requests with at most this many prompt tokens in all; refuse more with "
       "status 503.",
       group, kEngineCommands,
       integer(e.max_num_queued_tokens, 0, std::numeric_limits<int64_t>::max())},
      {"max-logprobs", "N",
       "Let a request ask for at most this many log probabilities for each token (0 = none).",
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
       "Serve the model under this name. Repeat the flag for more names: requests may use any of "
       "them, and replies and metrics have the first (none = the name of the model's folder or "
       "file).",
       group, kServe, list(c.served_model_name)},
      {"playground", "", "Serve a page at / to talk to the model with a browser.", group, kServe,
       boolean(c.playground)},
      {"strict-params", "",
       "Refuse requests that hold an unknown field, with status 400. Without this flag the server "
       "ignores such fields.",
       group, kServe, boolean(c.strict_params)},
      {"tool-call-parser", "NAME",
       "Find tool calls in the answers to chats as this family of models writes them: hermes "
       "(also Qwen 2.5, Qwen3 and SmolLM2), llama3_json, mistral or pythonic (auto = the family "
       "that the chat template shows, none = leave all calls in the text).",
       group, kServe,
       choice(c.tool_call_parser,
              {"auto", "none", "hermes", "llama3_json", "mistral", "pythonic"})},
      {"reasoning-tags", "BEGIN,END",
       "Return the text between these two marks at the beginning of a chat's answer as "
       "reasoning_content, not as content (auto = <think>,</think> or [THINK],[/THINK] if the "
       "chat template has them, none = leave reasoning in the content).",
       group, kServe, tags(c.reasoning_tags)},
      {"enable-log-requests", "",
       "Log a line when a request ends: its id, key, tokens, times and reason to end, never its "
       "text.",
       group, kServe, boolean(c.enable_log_requests)},
      {"otlp-traces-endpoint", "URL",
       "Send one span for each completion to the OpenTelemetry collector at this URL, as JSON over "
       "HTTP, for example http://127.0.0.1:4318/v1/traces (empty = send no spans).",
       group, kServe, text(c.otlp_traces_endpoint)},
      {"metrics-prefix", "NAME",
       "Begin the names of all metrics with this word: kivi, or vllm for dashboards made for vLLM.",
       group, kServe, text(c.metrics_prefix)},
      {"gateway-headers", "",
       "Trust the headers of an inference gateway. x-gateway-inference-fairness-id names the "
       "tenant instead of the API key, and x-llm-d-inference-objective the priority. Turn this on "
       "only where every client comes through a gateway that sets them.",
       group, kServe, boolean(c.gateway_headers)},
      {"objective-priority", "NAME=N",
       "Give requests of this objective the priority N; a smaller number runs earlier with "
       "--scheduling-policy priority. Repeat the flag for more objectives (none = ignore "
       "objectives).",
       group, kServe, list(c.objective_priorities)},
      {"kv-events-endpoint", "ENDPOINT",
       "Publish which blocks of tokens the prefix cache keeps on this ZeroMQ endpoint, as vLLM "
       "does. tcp://*:5557 listens; tcp://HOST:PORT connects to a subscriber (empty = publish "
       "nothing). Everybody who reaches the endpoint can read the tokens of prompts.",
       group, kServe, text(c.kv_events_endpoint)},
      {"kv-events-replay-endpoint", "ENDPOINT",
       "Send the newest KV events again to every subscriber that asks on this ZeroMQ endpoint: "
       "tcp://*:5558 (empty = keep none).",
       group, kServe, text(c.kv_events_replay_endpoint)},
      {"kv-events-topic", "TEXT",
       "Publish KV events under this topic. Routers expect kv@POD@MODEL (empty = this machine's "
       "name and port as POD, and the model's name).",
       group, kServe, text(c.kv_events_topic)},
      {"io-threads", "N", "Run the HTTP server on this many threads.", group, kServe,
       integer(c.io_threads, 1, 256)},
  };
}

std::vector<Flag> access_flags(Settings& s) {
  const std::string group = "Access";
  ServerConfig& c = s.server;
  return {
      {"api-key-file", "FILE",
       "Accept requests with any API key of this file, one key a line, besides those of --api-key "
       "(empty = no file). SIGHUP reads the file again.",
       group, kServe, text(s.api_key_file)},
      {"api-key", "KEY",
       "Accept requests with this API key. Repeat the flag for more keys. Every user of the "
       "machine can read it in the list of processes: prefer --api-key-file.",
       group, kServe, list(c.api_keys)},
      {"allow-open", "",
       "Serve without an API key on an address that other machines reach. Without this flag, such "
       "a start is refused.",
       group, kServe, boolean(c.allow_open)},
      {"metrics-require-key", "", "Require an API key for /metrics too.", group, kServe,
       boolean(c.metrics_require_key)},
      {"allowed-origins", "ORIGIN",
       "Allow web pages of this origin to call the API (CORS). Repeat the flag for more origins "
       "(none = send no CORS headers).",
       group, kServe, list(c.allowed_origins)},
      {"allowed-hosts", "NAME",
       "Accept this Host name on a loopback address, besides localhost and IP addresses. Repeat "
       "the flag for more names (* = accept any name).",
       group, kServe, list(c.allowed_hosts)},
      {"ssl-certfile", "FILE",
       "Speak TLS on both ports with this certificate and its chain, in PEM (empty = no TLS). "
       "SIGHUP reads the TLS files again.",
       group, kServe, text(c.ssl_certfile)},
      {"ssl-keyfile", "FILE",
       "Read the certificate's private key from this file, in PEM (empty = from --ssl-certfile).",
       group, kServe, text(c.ssl_keyfile)},
      {"ssl-ca-certs", "FILE",
       "Accept only clients with a certificate that one of these authorities has signed, in PEM "
       "(empty = ask for no certificate).",
       group, kServe, text(c.ssl_ca_certs)},
  };
}

std::vector<Flag> limit_flags(Settings& s) {
  const std::string group = "Limits";
  ServerConfig& c = s.server;
  return {
      {"drain-delay", "SECONDS",
       "After SIGTERM, say that the server is not ready and close each HTTP connection with its "
       "next reply, but take new requests for this many seconds (0 = refuse them at once).",
       group, kServe, integer(c.drain_delay, 0, 3600)},
      {"shutdown-timeout", "SECONDS",
       "Let running requests finish for this many seconds after SIGTERM and --drain-delay (0 = end "
       "them at once).",
       group, kServe, integer(c.shutdown_timeout, 0, 86400)},
      {"max-body-bytes", "BYTES", "Refuse request bodies larger than this, with status 413.", group,
       kServe, bytes(c.max_body_bytes, 1024)},
      {"max-body-bytes-in-flight", "BYTES",
       "Refuse a request with status 503 (gRPC: RESOURCE_EXHAUSTED) if the bodies and messages of "
       "all requests together would exceed this many bytes.",
       group, kServe, bytes(c.max_body_bytes_in_flight, 1024)},
      {"max-tokenize-bytes", "BYTES", "Refuse to tokenize a text of more than this many bytes.",
       group, kServe, bytes(s.engine.max_tokenize_bytes, 1)},
      {"max-reply-bytes", "BYTES",
       "Refuse a request whose reply could be larger than this many bytes.", group, kServe,
       bytes(s.engine.max_reply_bytes, 1)},
      {"max-connections", "N",
       "Keep at most this many HTTP connections open, and at most half as many from one address.",
       group, kServe, integer(c.max_connections, 1, 1 << 20)},
      {"max-grpc-connections", "N",
       "Keep at most this many gRPC connections open, and at most half as many from one address.",
       group, kServe, integer(c.max_grpc_connections, 2, 1 << 20)},
      {"header-timeout", "SECONDS",
       "Close a connection if a request's headers and body take longer than this many seconds to "
       "arrive.",
       group, kServe, integer(c.header_timeout, 1, 86400)},
      {"write-timeout", "SECONDS",
       "Close a connection, or end a call of gRPC, if the client does not read what is sent within "
       "this many seconds. Each 128 KiB of it adds a second.",
       group, kServe, integer(c.write_timeout, 1, 86400)},
      {"idle-timeout", "SECONDS",
       "Close a kept-alive connection after this many seconds without a request.", group, kServe,
       integer(c.idle_timeout, 1, 86400)},
      {"request-timeout", "SECONDS",
       "End a request this many seconds after the server accepted it (0 = never).", group, kServe,
       integer(c.request_timeout, 0, 86400)},
      {"limit-requests-per-minute", "N",
       "Refuse a completion with status 429 if its API key (without keys: its client address) has "
       "sent more than this many in a minute (0 = off).",
       group, kServe, integer(c.limit_requests_per_minute, 0, kIntMax)},
      {"limit-tokens-per-minute", "N",
       "Refuse a completion with status 429 if its API key (without keys: its client address) has "
       "used more than this many prompt and output tokens in a minute (0 = off).",
       group, kServe, integer(c.limit_tokens_per_minute, 0, std::numeric_limits<int64_t>::max())},
      {"limit-concurrent-requests", "N",
       "Refuse a completion with status 429 if its API key (without keys: its client address) "
       "already has this many that run or wait (0 = off).",
       group, kServe, integer(c.limit_concurrent_requests, 0, kIntMax)},
  };
}

std::vector<Flag> generate_flags(Settings& s) {
  const std::string group = "Generation";
  GenerateOptions& g = s.generate;
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  std::vector<Flag> flags = {
      {"prompt", "TEXT",
       "Continue this text. A single dash (-) reads the text from standard input.", group,
       kGenerate, text(g.prompt), "p"},
      {"prompt-ids", "IDS",
       "Continue these token ids instead of a text: 1,42,7 (empty = use --prompt).", group,
       kGenerate, numbers(g.prompt_ids, 0)},
      {"chat", "", "Send the prompt as a user's message through the model's chat template.", group,
       kGenerate, boolean(g.chat)},
      {"system", "TEXT",
       "Put this system message before the prompt; needs --chat (empty = no system message).",
       group, kGenerate, text(g.system)},
      {"ids", "", "Print token ids instead of text.", group, kGenerate, boolean(g.ids)},
      {"max-tokens", "N", "Generate at most this many tokens.", group, kGenerate,
       integer(g.max_tokens, 0, kIntMax)},
      {"min-tokens", "N", "Forbid the end of text before this many tokens (0 = allow it at once).",
       group, kGenerate, integer(g.min_tokens, 0, kIntMax)},
      {"ignore-eos", "", "Keep generating after the model's end-of-text token.", group, kGenerate,
       boolean(g.ignore_eos)},
      {"stop", "TEXT",
       "Stop before this string appears in the output. Repeat the flag for more strings (none = no "
       "stop string).",
       group, kGenerate, list(g.stop)},
      {"temperature", "X",
       "Divide the logits by this temperature before sampling (0 = always take the likeliest "
       "token, unset = the model's default, else 1).",
       group, kGenerate, number(g.temperature, 0, kInfinity)},
      {"top-p", "X",
       "Sample from the likeliest tokens whose probabilities add up to this share, in (0, 1] (1 = "
       "off, unset = the model's default, else 1).",
       group, kGenerate, number(g.top_p, 0, 1)},
      {"top-k", "N",
       "Sample from this many likeliest tokens (0 = off, unset = the model's default, else 0).",
       group, kGenerate, integer(g.top_k, 0, kIntMax)},
      {"min-p", "X",
       "Drop tokens less likely than this share of the likeliest token's probability, in [0, 1) (0 "
       "= off).",
       group, kGenerate, number(g.min_p, 0, 1)},
      {"repetition-penalty", "X",
       "Make tokens of prompt and output less likely by this factor (1 = off, below 1 = more "
       "likely).",
       group, kGenerate, number(g.repetition_penalty, 0, kInfinity)},
      {"presence-penalty", "X",
       "Subtract this from the logit of each token that the output holds (0 = off).", group,
       kGenerate, number(g.presence_penalty, -2, 2)},
      {"frequency-penalty", "X",
       "Subtract this from a token's logit once for each time that the output holds the token (0 = "
       "off).",
       group, kGenerate, number(g.frequency_penalty, -2, 2)},
  };
  for (Flag& flag : flags) flag.in_config = false;
  return flags;
}

}  // namespace

std::vector<Flag> make_flags(Settings& settings) {
  std::vector<Flag> all;
  for (auto* rows : {general_flags, server_flags, access_flags, limit_flags, generate_flags,
                     flags_of_measurements, model_flags, cache_flags, scheduler_flags}) {
    for (Flag& flag : rows(settings)) all.push_back(std::move(flag));
  }
  return all;
}

}  // namespace kivi
