// SPDX-License-Identifier: Apache-2.0
#include "engine/serving/load.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <filesystem>
#include <iterator>
#include <map>
#include <new>
#include <system_error>

#include "base/version.h"
#include "engine/kv_disk.h"
#include "engine/model/checkpoint.h"
#include "engine/model/decoder_model.h"
#include "engine/model/families/registry.h"
#include "engine/model/files/gguf.h"
#include "engine/model/model_config.h"
#include "engine/model/model_runner.h"
#include "engine/model/rope_scaling.h"
#include "engine/model/step_input.h"
#include "engine/model/weights.h"
#include "engine/scheduler.h"
#include "engine/serving/chat_template_source.h"
#include "engine/serving/device.h"
#include "engine/serving/first_steps.h"
#include "engine/serving/kv_fingerprint.h"
#include "engine/serving/kv_layer_table.h"
#include "engine/serving/weight_choice.h"
#include "engine/text/byte_tokenizer.h"
#include "kernels/kv_codec.h"

namespace kivi {

namespace {

// Rows of logits at a time, beyond one for each sequence: scoring a prompt in blocks of fewer rows
// would leave the matrix product idle.
constexpr int kLogitsRowsMin = 64;

// Lists the phases of starting up: each ends where the next one begins.
class PhaseClock {
 public:
  void end(const char* name, int64_t bytes = 0) {
    const Clock::time_point now = Clock::now();
    phases_.push_back({name, std::chrono::duration<double>(now - begin_).count(), bytes});
    begin_ = now;
  }
  const std::vector<LoadPhase>& phases() const { return phases_; }
  // The phase that has not ended.
  const char* current() const {
    constexpr const char* kNames[] = {"config",  "device", "plan",       "tokenizer",
                                      "weights", "memory", "first steps"};
    return kNames[std::min(phases_.size(), std::size(kNames) - 1)];
  }

 private:
  Clock::time_point begin_ = Clock::now();
  std::vector<LoadPhase> phases_;
};

// Everything that follows from the configuration before a byte is allocated.
struct Blueprint {
  std::string place;  // of the model: a folder or a GGUF file
  ModelConfig model;
  std::unique_ptr<Backend> backend;
  DType dtype = DType::f32;  // of what is not quantized
  WeightChoice weights;
  KvLayout layout;
  DecoderModel::Limits model_limits;
  StepInput::Limits input_limits;
  MemoryPlan plan;
  // The prefix cache is on. With dynamic rope scaling it cannot be: there, keys depend on the
  // length of their prompt.
  bool prefixes = false;
};

// Where the model that the user names is: a Hugging Face folder, or a GGUF file. A folder that is
// both counts as the former unless `load_format` says otherwise.
Result<std::string> find_model(const std::string& model, const std::string& load_format) {
  const auto wrong = [&](const char* expected) {
    return Error{
        ErrorCode::invalid,
        fmt::format("load_format is {}, but model is {}, {}", load_format, model, expected),
        "load_format"};
  };
  const bool only_folder = load_format == "safetensors", only_gguf = load_format == "gguf";
  if (only_folder && is_gguf_path(model)) return wrong("a GGUF file");
  std::error_code ignored;
  if (only_folder || (!only_gguf && std::filesystem::exists(model + "/config.json", ignored)))
    return model;
  KIVI_ASSIGN_OR_RETURN(const std::optional<std::string> file, find_gguf(model));
  if (!file && only_gguf) return wrong("no GGUF file and no folder with one");
  return file.value_or(model);
}

Result<int> model_length(const EngineConfig& config, const DecoderSpec& spec) {
  if (config.max_model_len == 0) return spec.max_positions;
  const int most = std::max(spec.max_positions, spec.max_positions_scaled);
  if (config.max_model_len > most)
    return Error{ErrorCode::invalid,
                 fmt::format("max_model_len is {}, must be at most the model's {}",
                             config.max_model_len, most),
                 "max_model_len"};
  return config.max_model_len;
}

int64_t workspace_bytes(const Blueprint& b) {
  return DecoderModel::workspace_bytes(*b.backend, b.model.spec, b.dtype, b.model_limits) +
         StepInput::device_bytes(b.input_limits) +
         ModelRunner::sampled_ids_bytes(b.model_limits.logits_rows);
}

// Bytes for pages, residual, staging and scratch.
int64_t store_budget(const EngineConfig& config, const DeviceInfo& device, int64_t others) {
  if (config.kv_cache_memory_bytes > 0) return config.kv_cache_memory_bytes;
  if (device.kind == "cpu") return kDefaultCpuStoreBytes;
  const auto share = int64_t(double(device.memory_total) * config.gpu_memory_utilization);
  return std::min(share, device.memory_free) - others;
}

// The device samples; it has the last word.
Status check_logprobs(const EngineConfig& config, const Backend& backend) {
  if (config.max_logprobs <= backend.logprobs_max()) return ok_status();
  return Error{ErrorCode::invalid,
               fmt::format("max_logprobs is {}, must be at most {} on device {}",
                           config.max_logprobs, backend.logprobs_max(), backend.info().kind),
               "max_logprobs"};
}

Result<Blueprint> plan_load(const EngineConfig& config, PhaseClock& clock) {
  KIVI_RETURN_IF_ERROR(validate(config));
  Blueprint b;
  KIVI_ASSIGN_OR_RETURN(b.place, find_model(config.model, config.load_format));
  KIVI_ASSIGN_OR_RETURN(b.model, read_model_config(b.place));
  const DecoderSpec& spec = b.model.spec;
  clock.end("config");
  KIVI_ASSIGN_OR_RETURN(b.backend, make_backend(config));
  KIVI_RETURN_IF_ERROR(check_logprobs(config, *b.backend));
  KIVI_RETURN_IF_ERROR(b.backend->check_shape(spec.kv_shape(), spec.hidden));
  clock.end("device");
  const DeviceInfo device = b.backend->info();
  KIVI_ASSIGN_OR_RETURN(b.dtype, weight_dtype(config, b.model.dtype, device));
  KIVI_ASSIGN_OR_RETURN(const int max_model_len, model_length(config, spec));
  fit_context(b.model.spec.rope, max_model_len);
  KIVI_ASSIGN_OR_RETURN(b.layout, kv_layout_of(config, spec.kv_shape(), spec.heads_q));
  b.model.spec.rotated_heads = b.layout.format.rotation;

  b.model_limits = {config.max_num_batched_tokens, std::max(config.max_num_seqs, kLogitsRowsMin),
                    0};
  const int64_t pages_a_sequence =
      b.layout.pages_for(max_model_len) + KvLayout::staging_pages_for(max_model_len);
  b.prefixes = config.enable_prefix_caching && spec.rope.scaling != RopeScaling::dynamic;
  const int captures = b.prefixes ? Scheduler::kCapturesMax : 0;
  b.input_limits = {config.max_num_batched_tokens, config.max_num_seqs, captures,
                    (config.max_num_seqs + captures) * pages_a_sequence, spec.heads_q};
  const int64_t hidden_bytes = spec.hidden * int64_t(size_of(b.backend->activation_type(b.dtype)));

  const int rows_max = std::max(b.model_limits.rows, b.model_limits.logits_rows);
  KIVI_ASSIGN_OR_RETURN(b.weights, choose_weights(config, *b.backend, b.model, b.dtype, rows_max));
  b.model_limits.product_scratch = b.weights.product_scratch;
  const int64_t weights = b.weights.bytes.total, workspace = workspace_bytes(b);
  const int64_t budget = store_budget(config, device, weights + workspace);
  const int64_t scratch =
      std::min(config.prefill_scratch_bytes, b.backend->scratch_bytes_for(b.layout, max_model_len));
  KIVI_ASSIGN_OR_RETURN(b.plan, plan_store(config, b.layout, max_model_len, budget, scratch,
                                           b.prefixes, hidden_bytes));
  KIVI_RETURN_IF_ERROR(plan_host(config, b.layout, b.prefixes, b.plan));
  b.plan.device = fmt::format("{} ({})", device.kind, device.name);
  if (config.kv_cache_dtype == "auto" && b.layout.format.kind == KvKind::f16)
    b.plan.format += fmt::format(" (auto: no KIVI format has a head_dim of {})", spec.head_dim);
  b.plan.weights = weights;
  b.plan.weight_formats = describe(b.weights.bytes);
  if (!b.weights.note.empty()) b.plan.weight_formats += "; " + b.weights.note;
  b.plan.workspace = workspace;
  b.plan.product_scratch = b.weights.product_scratch;
  clock.end("plan");
  return b;
}

const char* long_name(DType dtype) {
  if (dtype == DType::f16) return "float16";
  return dtype == DType::bf16 ? "bfloat16" : "float32";
}

// The folder or GGUF file that the tokenizer is read from.
Result<std::string> tokenizer_place(const EngineConfig& config, const std::string& model_place) {
  if (config.tokenizer.empty()) return model_place;
  std::error_code ignored;
  if (is_gguf_path(config.tokenizer)) return config.tokenizer;
  if (std::filesystem::is_directory(config.tokenizer, ignored)) return config.tokenizer;
  return std::filesystem::path(config.tokenizer).parent_path().string();
}

ModelSummary summary_of(const ModelConfig& model, DType dtype, const WeightBytes& bytes) {
  const DecoderSpec& spec = model.spec;
  ModelSummary s;
  s.architecture = std::string(model.family->architecture);
  s.layers = spec.layers;
  s.hidden = spec.hidden;
  s.heads_q = spec.heads_q;
  s.heads_kv = spec.heads_kv;
  s.head_dim = spec.head_dim;
  s.vocab = spec.vocab;
  s.max_len = spec.max_positions;
  s.sliding_window = spec.sliding_window;
  for (int i = 0; i < spec.layers; ++i) s.layers_windowed += spec.window_of(i) > 0 ? 1 : 0;
  s.parameters = parameter_count(spec);
  s.weight_bytes = bytes.total;
  s.weight_formats = describe(bytes);
  s.dtype = long_name(dtype);
  return s;
}

bool has_chat_template(const std::string& place) {
  const auto found = find_chat_template(place, "");
  return found.ok() && found->has_value();
}

// How many tensors of each type there are, the most frequent first.
Status summarize_files(const std::string& place, ModelSummary& s) {
  const Result<Checkpoint> checkpoint = Checkpoint::open(place);
  if (!checkpoint.ok() && checkpoint.error().code == ErrorCode::not_found) return ok_status();
  if (!checkpoint.ok()) return checkpoint.error();
  std::map<std::string, int> counts;
  for (const auto& [name, tensor] : checkpoint->tensors()) {
    ++counts[tensor.dtype_name];
    s.file_bytes += int64_t(tensor.bytes);
  }
  std::vector<std::pair<int, std::string>> sorted;
  for (const auto& [type, count] : counts) sorted.emplace_back(-count, type);
  std::sort(sorted.begin(), sorted.end());
  for (const auto& [count, type] : sorted)
    s.file_types += fmt::format("{}{} {}", s.file_types.empty() ? "" : ", ", -count, type);
  return ok_status();
}

// Changes with the build, the model and the store's format, and with nothing else.
std::string fingerprint_of(const ModelSummary& s, const MemoryPlan& plan) {
  const std::string text =
      fmt::format("{} {} {} {} {} {} {} {} {} {} {} {} {}{}", KIVI_VERSION, s.architecture,
                  s.layers, s.hidden, s.heads_q, s.heads_kv, s.head_dim, s.vocab, s.parameters,
                  s.dtype, s.weight_formats, plan.device, plan.format, plan.layer_bits);
  uint64_t hash = 0xcbf29ce484222325;  // FNV-1a
  for (const char c : text) hash = (hash ^ uint8_t(c)) * 0x100000001b3;
  return fmt::format("fp_{:010x}", hash & 0xffffffffff);
}

Result<DecoderWeights> make_weights(const EngineConfig& config, const Blueprint& b,
                                    const WeightProgress& progress) {
  const DecoderSpec& spec = b.model.spec;
  const WeightFormats& formats = b.weights.formats;
  if (config.load_format == "dummy")
    return random_weights(*b.backend, spec, b.model.names, b.dtype, progress, formats);
  KIVI_ASSIGN_OR_RETURN(const Checkpoint checkpoint,
                        open_checkpoint(b.place, b.model.quantization, spec, b.model.names));
  return load_weights(*b.backend, spec, b.model.names, checkpoint, b.dtype, progress, formats);
}

// Memory for pages on the host, and the folder for those on disk.
Result<KvTierSetup> make_tier(const EngineConfig& config, const Blueprint& b) {
  KvTierSetup tier;
  if (b.plan.host_pages == 0) return tier;
  std::unique_ptr<KvDisk> disk;
  if (!config.kv_disk.empty()) {
    KIVI_ASSIGN_OR_RETURN(disk, KvDisk::open({config.kv_disk, config.kv_disk_bytes,
                                              config.kv_disk_key_file, config.kv_disk_read_only}));
    KIVI_ASSIGN_OR_RETURN(
        tier.fingerprint,
        kv_fingerprint(config, b.place, b.backend->info(), b.layout,
                       fmt::format("{} {} {} {} {}", long_name(b.dtype), describe(b.weights.bytes),
                                   b.plan.capacity.staging_pages, b.plan.capacity.layerwise_tokens,
                                   fmt::join(b.model.spec.rope.divisors, " "))));
  }
  Result<HostMemory> memory = b.backend->allocate_host(size_t(b.plan.host));
  if (!memory.ok())
    return Error{memory.error().code,
                 fmt::format("kv_host_memory is {}, but there is no memory for pages on the host "
                             "({} bytes): {}",
                             config.kv_host_memory, b.plan.host, memory.error().message),
                 "kv_host_memory"};
  tier.memory = std::move(*memory);
  tier.host_pages = b.plan.host_pages;
  tier.secret = disk == nullptr ? random_secret() : disk->secret();
  if (disk != nullptr)
    disk->use_pages(tier.memory.get(), size_t(b.layout.page_bytes()),
                    sha256(std::array{std::string_view(tier.fingerprint)}));
  tier.disk = std::move(disk);
  return tier;
}

Result<std::unique_ptr<StepRunner>> make_runner(const EngineConfig& config, const Blueprint& b,
                                                const WeightProgress& progress, std::byte* host,
                                                PhaseClock& clock) {
  Backend& backend = *b.backend;
  KIVI_ASSIGN_OR_RETURN(DecoderWeights weights, make_weights(config, b, progress));
  backend.synchronize();
  clock.end("weights", b.plan.weights);
  KIVI_ASSIGN_OR_RETURN(
      std::unique_ptr<DecoderModel> model,
      DecoderModel::create(backend, b.model.spec, std::move(weights), b.model_limits));
  KIVI_ASSIGN_OR_RETURN(StepInput input, StepInput::create(backend, b.input_limits));
  KIVI_ASSIGN_OR_RETURN(Buffer store,
                        backend.allocate(size_t(store_bytes(b.plan)), "the key-value store"));
  const KvView view = lay_out_store(b.plan, b.layout, store.data());
  const LayerwiseArea layerwise = lay_out_layerwise(
      b.plan, b.layout, store.data(), b.model.spec.hidden, backend.activation_type(b.dtype));
  const int logits_rows = b.model_limits.logits_rows;
  KIVI_ASSIGN_OR_RETURN(
      Buffer ids,
      backend.allocate(size_t(ModelRunner::sampled_ids_bytes(logits_rows)), "the sampled ids"));
  auto runner = std::make_unique<ModelRunner>(backend, std::move(model), std::move(input),
                                              std::move(store), view, layerwise, std::move(ids),
                                              logits_rows, !config.enforce_eager);
  runner->set_host_pages(host);
  clock.end("memory");
  if (runner->asynchronous()) {
    KIVI_RETURN_IF_ERROR(
        run_first_steps(*runner, std::min(b.model_limits.rows, b.plan.max_model_len)));
    clock.end("first steps");
  }
  return std::unique_ptr<StepRunner>(std::move(runner));
}

// A dummy model that comes without a tokenizer gets one of bytes: what is served always has one.
Result<std::unique_ptr<Tokenizer>> make_tokenizer(const EngineConfig& config, const Blueprint& b) {
  const int vocab = b.model.spec.vocab;
  KIVI_ASSIGN_OR_RETURN(const std::string place, tokenizer_place(config, b.place));
  Result<std::unique_ptr<Tokenizer>> tokenizer = load_tokenizer(place);
  if (!tokenizer.ok() && config.load_format == "dummy" &&
      tokenizer.error().code == ErrorCode::not_found)
    return make_byte_tokenizer(vocab);
  if (tokenizer.ok() && (*tokenizer)->vocab_size() > vocab)
    return Error{ErrorCode::invalid,
                 fmt::format("the tokenizer in {} has {} tokens, must have at most the model's {}",
                             place, (*tokenizer)->vocab_size(), vocab),
                 "tokenizer"};
  return tokenizer;
}

// The template belongs to the tokenizer: they come from one place.
Result<std::unique_ptr<ChatPrompt>> make_chat_prompt(const EngineConfig& config, const Blueprint& b,
                                                     const Tokenizer& tokenizer) {
  KIVI_ASSIGN_OR_RETURN(const std::string place, tokenizer_place(config, b.place));
  KIVI_ASSIGN_OR_RETURN(const auto source, find_chat_template(place, config.chat_template));
  if (!source) return std::unique_ptr<ChatPrompt>();
  return ChatPrompt::make(*source, tokenizer);
}

}  // namespace

std::string name_of_model(const std::string& model) {
  const std::filesystem::path place = std::filesystem::absolute(model).lexically_normal();
  if (is_gguf_path(model)) return place.stem().string();
  return place.has_filename() ? place.filename().string() : place.parent_path().filename().string();
}

std::string describe(const LoadPhase& phase) {
  std::string text = fmt::format("{} {:.2f} s", phase.name, phase.seconds);
  if (phase.bytes > 0)
    text += fmt::format(" ({:.2f} GB, {:.2f} GB/s)", double(phase.bytes) / 1e9,
                        double(phase.bytes) / 1e9 / std::max(phase.seconds, 1e-9));
  return text;
}

int64_t device_memory_used(const LoadedModel& model) {
  const DeviceInfo info = model.backend->info();
  return info.memory_total - info.memory_free;
}

Result<ModelSummary> summarize_model(const std::string& model) {
  KIVI_ASSIGN_OR_RETURN(const std::string place, find_model(model, "auto"));
  KIVI_ASSIGN_OR_RETURN(const ModelConfig config, read_model_config(place));
  const WeightBytes bytes = weight_bytes(config.spec, config.names, config.dtype, config.formats);
  ModelSummary s = summary_of(config, config.dtype, bytes);
  const Result<std::unique_ptr<Tokenizer>> tokenizer = load_tokenizer(place);
  s.tokenizer_kind = tokenizer.ok() ? (*tokenizer)->kind()
                     : tokenizer.error().code == ErrorCode::not_found
                         ? "none"
                         : "cannot be used: " + tokenizer.error().message;
  s.has_chat_template = has_chat_template(place);
  KIVI_RETURN_IF_ERROR(summarize_files(place, s));
  return s;
}

Result<int> clear_kv_disk(const std::string& folder) { return KvDisk::clear(folder); }

Result<MemoryPlan> plan_memory(const EngineConfig& config) {
  PhaseClock clock;
  KIVI_ASSIGN_OR_RETURN(const Blueprint blueprint, plan_load(config, clock));
  return blueprint.plan;
}

Result<std::unique_ptr<LoadedModel>> load_model(const EngineConfig& config,
                                                const LoadProgress& progress) {
  return load_model(config, progress, {});
}

namespace {

Result<std::unique_ptr<LoadedModel>> load_phases(const EngineConfig& config,
                                                 const LoadProgress& progress,
                                                 const BackendSetup& prepare, PhaseClock& clock,
                                                 Blueprint& b) {
  KIVI_ASSIGN_OR_RETURN(b, plan_load(config, clock));
  if (prepare) prepare(*b.backend);
  auto loaded = std::make_unique<LoadedModel>();
  KIVI_ASSIGN_OR_RETURN(loaded->tokenizer, make_tokenizer(config, b));
  KIVI_ASSIGN_OR_RETURN(loaded->chat, make_chat_prompt(config, b, *loaded->tokenizer));
  clock.end("tokenizer");
  const WeightProgress weight_progress = [&](int64_t done, int64_t total) {
    if (progress) progress("weights", done, total);
  };
  KIVI_ASSIGN_OR_RETURN(KvTierSetup tier, make_tier(config, b));
  KIVI_ASSIGN_OR_RETURN(std::unique_ptr<StepRunner> runner,
                        make_runner(config, b, weight_progress, tier.memory.get(), clock));
  const EngineLimits engine_model = {b.model.spec.vocab, b.plan.max_model_len,
                                     b.model.eos_token_ids};
  loaded->backend = std::move(b.backend);
  EngineConfig engine_config = config;
  engine_config.enable_prefix_caching = b.prefixes;
  loaded->engine = std::make_unique<Engine>(engine_config, engine_model, b.layout, b.plan.capacity,
                                            std::move(runner), std::move(tier));
  loaded->plan = b.plan;
  loaded->phases = clock.phases();
  loaded->summary = summary_of(b.model, b.dtype, b.weights.bytes);
  loaded->summary.tokenizer_kind = loaded->tokenizer->kind();
  loaded->summary.has_chat_template = loaded->chat != nullptr;

  ServedModel& served = loaded->served;
  served.name = name_of_model(config.model);
  served.path = config.model;
  served.fingerprint = fingerprint_of(loaded->summary, loaded->plan);
  served.created = std::chrono::duration_cast<std::chrono::seconds>(
                       std::chrono::system_clock::now().time_since_epoch())
                       .count();
  served.max_model_len = b.plan.max_model_len;
  served.hidden = b.model.spec.hidden;
  served.kv_format = b.layout.format;
  served.kv_layer_bits = b.layout.layer_bits;
  served.tokenizer = loaded->tokenizer.get();
  served.engine = loaded->engine.get();
  served.chat = loaded->chat.get();
  loaded->structured = std::make_unique<StructuredOutput>(*loaded->tokenizer, b.model.spec.vocab,
                                                          b.model.eos_token_ids);
  served.structured = loaded->structured.get();
  served.default_temperature = b.model.temperature;
  served.default_top_p = b.model.top_p;
  served.default_top_k = b.model.top_k;
  return loaded;
}

// What the host's memory ran out over. Buffers of a device say it themselves (Backend::allocate).
Error out_of_memory(const PhaseClock& clock, const Blueprint& b) {
  std::string message = fmt::format("out of memory while loading (phase: {})", clock.current());
  const auto add = [&](const char* what, int64_t bytes) {
    message += fmt::format("{}{} MB", what, bytes / 1'000'000);
  };
  if (b.plan.weights > 0) {
    add(": needed are at least ", b.plan.weights + b.plan.workspace + store_bytes(b.plan));
    add(" (weights ", b.plan.weights);
    add(", activations ", b.plan.workspace);
    add(", key-value store ", store_bytes(b.plan));
    message += ")";
  }
  rlimit limit = {};
  if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
    add("; the limit of this process is ", int64_t(limit.rlim_cur));
  else
    add("; the machine's memory is ", int64_t(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGE_SIZE));
  return Error{ErrorCode::resource_exhausted, std::move(message)};
}

}  // namespace

Result<std::unique_ptr<LoadedModel>> load_model(const EngineConfig& config,
                                                const LoadProgress& progress,
                                                const BackendSetup& prepare) {
  PhaseClock clock;
  Blueprint b;
  try {
    return load_phases(config, progress, prepare, clock, b);
  } catch (const std::bad_alloc&) {
    return out_of_memory(clock, b);
  } catch (const std::system_error& e) {
    if (e.code() != std::errc::resource_unavailable_try_again) throw;
    return out_of_memory(clock, b);  // for the stack of a thread
  }
}

}  // namespace kivi
