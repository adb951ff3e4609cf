// SPDX-License-Identifier: Apache-2.0
// What `kivi bench serve` can be told.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "bench/client/arrivals.h"
#include "bench/client/client.h"
#include "bench/client/figures.h"
#include "bench/client/workload.h"

namespace kivi::load {

enum class Api { completions, chat, grpc };

struct ServeOptions {
  // The server.
  Api api = Api::completions;
  std::string base_url = "http://127.0.0.1:8000";
  std::string target;    // gRPC: HOST:PORT
  std::string endpoint;  // path of the API; "": the API's usual one
  RequestOptions request;

  // The work.
  WorkloadOptions work;
  bool count_set = false;  // --num-prompts was given; else a trace's length decides
  std::string sharegpt;    // file; "": lengths by work.prompt and work.output
  std::string tokenizer;   // of the ShareGPT texts: folder or GGUF file; "": bytes / 4
  int length_max = 2048;   // of a prompt or an output that is drawn from a distribution or a file
  int warmups = 2;

  // When. Each rate with each concurrency is a run.
  ArrivalKind arrivals = ArrivalKind::poisson;
  int burst_size = 8;
  std::string trace;             // file of due times
  std::vector<double> rates;     // requests a second; infinity: closed loop, or all at once
  std::vector<int> concurrency;  // requests in flight at most; 0: no limit
  int threads = 1;

  // What is made of it.
  Slo slo;
  std::string json, html;  // files; "": none
  bool detailed = false;   // each request in the JSON
  bool progress = true;    // where standard error is a terminal
};

// From the words after the command's name. Error: names the flag, its value and what was expected.
// Nothing where --help was given; it is printed.
Result<std::optional<ServeOptions>> parse_serve_options(const std::vector<std::string>& args);

}  // namespace kivi::load
