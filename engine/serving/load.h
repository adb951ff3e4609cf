// SPDX-License-Identifier: Apache-2.0
// Turns an EngineConfig into everything that serves: device, weights, store, runner, engine,
// tokenizer.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/config.h"
#include "engine/engine.h"
#include "engine/serving/chat_prompt.h"
#include "engine/serving/completion.h"
#include "engine/serving/memory_plan.h"
#include "kernels/backend.h"

namespace kivi {

struct ModelSummary {
  std::string architecture;  // "LlamaForCausalLM"
  int layers = 0, hidden = 0, heads_q = 0, heads_kv = 0, head_dim = 0, vocab = 0, max_len = 0;
  int sliding_window = 0;   // tokens; 0: none
  int layers_windowed = 0;  // in how many layers it holds
  int64_t parameters = 0, weight_bytes = 0;
  std::string weight_formats;  // their bytes by format: "Q4_1 70.1 MiB, f16 0.1 MiB"
  std::string dtype;           // of what is not quantized
  std::string tokenizer_kind;  // "byte-level bpe", ..., "none", or the reason why it is unusable
  bool has_chat_template = false;
  // Set by summarize_model only: the tensors of the files, such as "210 Q4_1, 61 F32"; "" = none.
  std::string file_types;
  int64_t file_bytes = 0;
};

// A part of starting up and its time. The parts are, in order: "config", "device", "plan",
// "tokenizer", "weights", "memory", "first steps".
struct LoadPhase {
  std::string name;
  double seconds = 0;
  int64_t bytes = 0;  // bytes moved; 0 = few or none
};
// Returns text such as "weights 0.61 s (13.5 GB, 22.1 GB/s)".
std::string describe(const LoadPhase& phase);

// Receives the progress of loading: the phase ("weights"), bytes done, bytes in all.
using LoadProgress = std::function<void(const std::string& phase, int64_t done, int64_t total)>;

// Owns everything. Members are destroyed in reverse order.
struct LoadedModel {
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<ChatPrompt> chat;  // null = no chat template
  std::unique_ptr<StructuredOutput> structured;
  std::unique_ptr<Engine> engine;
  MemoryPlan plan;
  std::vector<LoadPhase> phases;
  ModelSummary summary;
  ServedModel served;  // `name` is the folder's name until the server sets it
};

// Describes a model for `kivi info`. It reads everything but the weights' bytes. A config.json
// alone suffices.
Result<ModelSummary> summarize_model(const std::string& model);
// Plans memory for --dry-run. It reads only config.json or the metadata of a GGUF file.
Result<MemoryPlan> plan_memory(const EngineConfig& config);

// Removes the files that --kv-disk has written to a folder, and its secret. Returns their number.
// Errors: not_found (no such folder), unavailable (a server writes to it), internal.
Result<int> clear_kv_disk(const std::string& folder);

// Returns the bytes of the device's memory that any program uses now (on the CPU: of the machine).
int64_t device_memory_used(const LoadedModel& model);

Result<std::unique_ptr<LoadedModel>> load_model(const EngineConfig& config,
                                                const LoadProgress& progress);

// For studies: calls `prepare` with the backend before the model is loaded (Backend::observe).
using BackendSetup = std::function<void(Backend&)>;
Result<std::unique_ptr<LoadedModel>> load_model(const EngineConfig& config,
                                                const LoadProgress& progress,
                                                const BackendSetup& prepare);

// Returns the name of a model by its path: "models/tales-llama/" -> "tales-llama",
// "x/SmolLM2.Q4_1.gguf" -> "SmolLM2.Q4_1".
std::string name_of_model(const std::string& model);

}  // namespace kivi
