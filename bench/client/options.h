// SPDX-License-Identifier: Apache-2.0
// What `kivi bench serve` can be told. Plain data: the table of flags has a row for every field of
// ServeFlags and for the fields of ServeOptions that need no judgment.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "bench/client/arrivals.h"
#include "bench/client/workload.h"

namespace kivi::load {

enum class Api { completions, chat, grpc };

// What every request asks for besides its prompt and lengths.
struct RequestOptions {
  std::string model;
  std::string api_key;  // "": none
  bool chat = false;
  bool ignore_eos = false;
  std::optional<double> temperature;
  std::string extra_body;  // a JSON object, whose fields go into each HTTP request
  double timeout_s = 600;  // of one request, connecting included
};

// Limits, milliseconds; those that are set must all hold for a request to be good.
struct Slo {
  std::optional<double> ttft, tpot, e2el;
  bool any() const { return ttft || tpot || e2el; }
};
// "ttft:200,tpot:50,e2el:5000". Error: what was expected.
Result<Slo> parse_slo(const std::string& text);

struct ServeOptions {
  // The server.
  Api api = Api::completions;
  std::string base_url = "http://127.0.0.1:8000";
  std::string target = "127.0.0.1:50051";  // gRPC: HOST:PORT
  std::string endpoint;                    // path of the API; "": the API's usual one
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
  bool detailed = false;  // each request in the JSON
  bool progress = true;   // where standard error is a terminal
};

// Flags with a grammar of their own, or for which it counts whether they were given.
struct ServeFlags {
  std::optional<int> num_prompts, prefix_len, prefix_count;
  std::string input_len, output_len;  // "": not given, 128 tokens
  std::string prompt_format;          // "": ids, but text for chats
  std::string arrivals;               // "": poisson
  std::string rates;                  // "": inf
  std::string goodput;                // "": no limits
};

// Reads `flags` into `options`. Error: names the flag, its value and what was expected, or the
// flags that cannot stand together.
Status judge(const ServeFlags& flags, ServeOptions& options);

}  // namespace kivi::load
