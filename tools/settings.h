// SPDX-License-Identifier: Apache-2.0
// Settings: all that a command of `kivi` can be told, with the defaults. Plain data; tools/flags
// fills it from flags, KIVI_* variables and a --config file.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "bench/client/options.h"
#include "bench/kernel_benchmark.h"
#include "bench/throughput_options.h"
#include "engine/config.h"
#include "server/server_config.h"
#include "study/options.h"

namespace kivi {

// `kivi generate`. Sampling parameters that are not set are the model's (generation_config.json),
// else those of SamplingParams. The seed is EngineConfig::seed.
struct GenerateOptions {
  std::string prompt;           // "-": standard input
  std::vector<int> prompt_ids;  // instead of a text; no BOS is added
  bool ids = false;             // print ids instead of text
  bool chat = false;            // the prompt is a user's message, for the chat template
  std::string system;           // the chat's system message; "": none
  int max_tokens = 128;
  int min_tokens = 0;
  bool ignore_eos = false;
  std::vector<std::string> stop;
  std::optional<double> temperature, top_p;
  std::optional<int> top_k;
  double min_p = 0;
  double repetition_penalty = 1;
  double presence_penalty = 0;
  double frequency_penalty = 0;
};

struct Settings {
  EngineConfig engine;
  ServerConfig server;
  GenerateOptions generate;
  ThroughputOptions throughput;
  KernelBenchmarkOptions kernels;
  load::ServeOptions bench_serve;
  load::ServeFlags bench_serve_flags;
  EvalOptions eval;         // engine and text: those below
  KvStatsOptions kv_stats;  // the same
  TuneOptions tune;         // the same
  std::string text;         // file that a study reads
  std::string json, html;   // files for figures and for a page; "": none
  std::string config_file;
  std::string api_key_file;  // one key a line; added to server.api_keys
  bool dry_run = false;
};

}  // namespace kivi
