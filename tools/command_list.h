// SPDX-License-Identifier: Apache-2.0
// The names of the commands, for the usage text, the manual page and the completions of shells.
#pragma once

#include <span>

#include "tools/flags.h"

namespace kivi {

struct CommandInfo {
  const char* name;     // one word, or "bench" and a second word
  const char* summary;  // a sentence
  unsigned flags;       // the Command whose flags it takes; 0: none
};

inline constexpr CommandInfo kCommandList[] = {
    {"serve", "Serve a model over HTTP (OpenAI's API) and gRPC.", kServe},
    {"generate", "Continue a text on the terminal, without a server.", kGenerate},
    {"health", "Ask the server on this machine whether it is ready.", kServe},
    {"info", "Print what a model folder holds and how many bytes its KV cache takes.", kInfo},
    {"bench serve", "Send load to a running server and report latencies and throughput.",
     kBenchServe},
    {"bench throughput", "Measure the engine without a server: tokens/s, latencies, batch sizes.",
     kThroughput},
    {"bench kernels", "Time each op of a step and compare it with the device's peak rates.",
     kKernels},
    {"eval", "Measure what each cache format costs a model in quality.", kEval},
    {"kv-stats", "Study how keys and values are distributed and what quantizing them costs.",
     kKvStats},
    {"tune", "Choose the bits of each layer of the KV cache under a budget, for --kv-layer-bits.",
     kTune},
    {"clear-kv-disk", "Remove the pages that --kv-disk has written to a folder.", 0},
    {"version", "Print the version.", 0},
};

}  // namespace kivi
