// SPDX-License-Identifier: Apache-2.0
// kivi bench serve: loads a running server, over HTTP or gRPC, and reports what clients see.
#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <ctime>
#include <nlohmann/json.hpp>

#include "base/regular_file.h"
#include "base/version.h"
#include "bench/client/grpc_client.h"
#include "bench/client/html_report.h"
#include "bench/client/http_client.h"
#include "bench/client/load_run.h"
#include "bench/client/options.h"
#include "bench/client/progress.h"
#include "bench/client/report.h"
#include "engine/text/tokenizer.h"
#include "tools/commands.h"

namespace kivi {
namespace {

using namespace load;  // NOLINT: this file is the command of that folder
using nlohmann::json;
using nlohmann::ordered_json;

constexpr double kAskTimeoutSeconds = 10;  // for what the server is asked before a run
constexpr int kVocabDefault = 1000;        // every served vocabulary is larger

Result<std::string> read_file(const std::string& path, const char* flag) {
  const Result<RegularFile> file = RegularFile::open(path);
  Result<std::string> text = file.ok() ? file->read() : file.error();
  if (text.ok()) return text;
  return Error{text.error().code,
               fmt::format("--{} is \"{}\", must be a file that can be read: {}", flag, path,
                           text.error().message),
               flag};
}

// The field of a JSON reply; null where the server does not answer so.
Result<json> ask(const ServeOptions& o, const std::string& path) {
  KIVI_ASSIGN_OR_RETURN(const Endpoint endpoint, parse_url(o.base_url));
  KIVI_ASSIGN_OR_RETURN(const HttpClient::Reply reply,
                        http_get(endpoint, path, o.request.api_key, kAskTimeoutSeconds));
  json body = json::parse(reply.body, nullptr, /*allow_exceptions=*/false);
  if (reply.status == 200 && body.is_object()) return body;
  return json(nullptr);
}

// Model name and vocabulary, where they were not given. Error: the server cannot be reached.
Status ask_http(ServeOptions& o) {
  KIVI_ASSIGN_OR_RETURN(const json models, ask(o, "/v1/models"));
  const auto first = json::json_pointer("/data/0/id");
  if (o.request.model.empty()) {
    if (!models.contains(first) || !models.at(first).is_string())
      return Error{ErrorCode::invalid,
                   "--model is not set, and the server's /v1/models lists no model. Name the model "
                   "with --model",
                   "model"};
    o.request.model = models.at(first).get<std::string>();
  }
  if (o.work.vocab_size > 0 || o.work.format == PromptFormat::text) return ok_status();
  KIVI_ASSIGN_OR_RETURN(const json info, ask(o, "/tokenizer_info"));
  const bool known = info.contains("vocab_size") && info["vocab_size"].is_number_integer();
  o.work.vocab_size = known ? info["vocab_size"].get<int>() : kVocabDefault;
  return ok_status();
}

Status ask_grpc(ServeOptions& o) {
  KIVI_ASSIGN_OR_RETURN(const GrpcModelInfo info,
                        grpc_model_info(o.target, o.request.api_key, kAskTimeoutSeconds));
  if (o.request.model.empty()) o.request.model = info.model;
  if (o.work.vocab_size == 0) o.work.vocab_size = info.vocab_size;
  return ok_status();
}

Result<std::vector<Conversation>> load_conversations(const ServeOptions& o) {
  KIVI_ASSIGN_OR_RETURN(const std::string text, read_file(o.sharegpt, "sharegpt"));
  std::unique_ptr<Tokenizer> tokenizer;
  Encode encode;
  if (!o.tokenizer.empty()) {
    KIVI_ASSIGN_OR_RETURN(tokenizer, load_tokenizer(o.tokenizer));
    encode = [&tokenizer](const std::string& turn) { return tokenizer->encode(turn, false); };
  }
  auto all = parse_sharegpt(text, o.sharegpt, o.length_max, o.length_max, encode);
  if (all.ok() && o.work.format == PromptFormat::text)
    for (Conversation& c : *all) c.prompt_ids.clear();
  return all;
}

ClientFactory client_factory(const ServeOptions& o) {
  return [&o](boost::asio::io_context& io) -> std::unique_ptr<LoadClient> {
    if (o.api == Api::grpc) return make_grpc_client(io, o.target, o.request);
    return std::make_unique<HttpClient>(io, parse_url(o.base_url).value(), o.endpoint, o.request);
  };
}

std::string label_of(const ServeOptions& o, double rate, int concurrency) {
  std::string label = o.arrivals == ArrivalKind::trace ? "trace"
                      : std::isinf(rate)               ? ""
                                                       : fmt::format("rate {}", rate);
  if (concurrency > 0)
    label += fmt::format("{}concurrency {}", label.empty() ? "" : ", ", concurrency);
  return label.empty() ? "all at once" : label;
}

// The work and its times, of all runs of the command.
class Bench {
 public:
  explicit Bench(const ServeOptions& options) : o_(options), factory_(client_factory(o_)) {}

  Status prepare() {
    if (!o_.sharegpt.empty()) {
      KIVI_ASSIGN_OR_RETURN(conversations_, load_conversations(o_));
    }
    if (o_.arrivals != ArrivalKind::trace) return ok_status();
    KIVI_ASSIGN_OR_RETURN(const std::string text, read_file(o_.trace, "trace"));
    KIVI_ASSIGN_OR_RETURN(trace_, parse_trace(text, "--trace " + o_.trace));
    return ok_status();
  }

  // Requests of a run: a trace has no more than its lines, and all of them if nothing else is said.
  int count() const {
    if (o_.arrivals != ArrivalKind::trace) return o_.work.count;
    const int lines = int(trace_.size());
    return o_.count_set ? std::min(o_.work.count, lines) : lines;
  }

  // A few requests one after the other, at most as long as the run's. Error: none succeeded.
  Status warm_up() {
    if (o_.warmups == 0) return ok_status();
    const std::vector<LoadRequest> requests = work(kWarmUpRun, o_.warmups);
    const RunResult result =
        run_load({.requests = requests, .concurrency = 1}, factory_, [](const RunState&) {});
    for (const RequestRecord& r : result.records)
      if (r.outcome != Outcome::failed) return ok_status();
    const RequestRecord& r = result.records.front();
    return Error{ErrorCode::unavailable, fmt::format("no warm-up request was answered: {}: {}",
                                                     r.error_kind, r.error_message)};
  }

  RunReport run(int index, double rate, int concurrency) {
    RunReport report{.label = label_of(o_, rate, concurrency), .concurrency = concurrency};
    const bool is_trace = o_.arrivals == ArrivalKind::trace;
    report.request_rate = is_trace ? 0 : rate;
    const int count = this->count();
    const std::vector<LoadRequest> requests = work(index, count);
    RunPlan plan{.requests = requests, .concurrency = concurrency, .threads = o_.threads};
    if (is_trace)
      plan.due.assign(trace_.begin(), trace_.begin() + count);
    else if (!std::isinf(rate) || concurrency == 0)
      plan.due = arrival_times(o_.arrivals, rate, o_.burst_size, count, o_.work.seed);
    ProgressBar bar(report.label, requests.size(), o_.progress);
    report.result = run_load(plan, factory_, [&bar](const RunState& state) { bar.show(state); });
    report.figures = figures_of(report.result, o_.slo);
    return report;
  }

 private:
  std::vector<LoadRequest> work(int run, int count) const {
    WorkloadOptions options = o_.work;
    options.count = count;
    return conversations_.empty() ? make_workload(options, run)
                                  : make_workload(options, conversations_, run);
  }

  const ServeOptions& o_;
  const ClientFactory factory_;
  std::vector<Conversation> conversations_;
  std::vector<double> trace_;
};

std::string date_now() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc);
  return text;
}

ordered_json settings_json(const ServeOptions& o) {
  static constexpr const char* kApis[] = {"openai", "openai-chat", "kivi-grpc"};
  static constexpr const char* kArrivals[] = {"poisson", "constant", "burst", "trace"};
  ordered_json out;
  out["date"] = date_now();
  out["backend"] = kApis[int(o.api)];
  out["label"] = nullptr;
  out["model_id"] = o.request.model;
  out["tokenizer_id"] = o.tokenizer.empty() ? ordered_json(nullptr) : ordered_json(o.tokenizer);
  out["num_prompts"] = o.work.count;
  out["seed"] = o.work.seed;
  out["input_len"] = o.sharegpt.empty() ? describe(o.work.prompt) : o.sharegpt;
  out["output_len"] = o.sharegpt.empty() ? describe(o.work.output) : o.sharegpt;
  out["prompt_format"] = o.work.format == PromptFormat::ids ? "ids" : "text";
  out["ignore_eos"] = o.request.ignore_eos;
  out["arrivals"] = kArrivals[int(o.arrivals)];
  // Gamma-distributed gaps of this shape: 1 is Poisson, infinity is constant, as vLLM has it.
  out["burstiness"] =
      o.arrivals == ArrivalKind::poisson ? ordered_json(1.0) : ordered_json(nullptr);
  out["version"] = KIVI_VERSION;
  return out;
}

// Every request in flight is a connection.
void raise_open_files() {
  rlimit files{};
  if (getrlimit(RLIMIT_NOFILE, &files) != 0) return;
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
}

Status run_bench(ServeOptions& o, const std::string& json_file, const std::string& html_file) {
  raise_open_files();
  KIVI_RETURN_IF_ERROR(o.api == Api::grpc ? ask_grpc(o) : ask_http(o));
  Bench bench(o);
  KIVI_RETURN_IF_ERROR(bench.prepare());
  o.work.count = bench.count();
  KIVI_RETURN_IF_ERROR(bench.warm_up());
  fmt::print("{} at {}, {} requests a run, input {}, output {} tokens{}\n\n", o.request.model,
             o.api == Api::grpc ? o.target : o.base_url, o.work.count,
             o.sharegpt.empty() ? describe(o.work.prompt) : o.sharegpt,
             o.sharegpt.empty() ? describe(o.work.output) : "of the same",
             o.request.ignore_eos ? ", EOS ignored" : "");
  std::vector<RunReport> runs;
  for (const double rate : o.rates)
    for (const int concurrency : o.concurrency)
      runs.push_back(bench.run(int(runs.size()), rate, concurrency));
  fmt::print("{}", report_text(runs));
  const ordered_json settings = settings_json(o);
  if (!json_file.empty())
    KIVI_RETURN_IF_ERROR(
        write_file("json", json_file, report_json(settings, runs, o.detailed).dump(2) + "\n"));
  if (!html_file.empty())
    KIVI_RETURN_IF_ERROR(write_file("html", html_file, html_report(settings, runs)));
  for (const RunReport& run : runs)
    if (run.figures.completed + run.figures.cancelled == 0)
      return Error{ErrorCode::unavailable, fmt::format("{}: not one of {} requests was answered",
                                                       run.label, run.figures.requests)};
  return ok_status();
}

}  // namespace

int run_bench_serve(const Arguments& args) {
  Settings settings;
  if (const auto code = read_settings(kBenchServe, args, settings)) return *code;
  ServeOptions& options = settings.bench_serve;
  Status status = judge(settings.bench_serve_flags, options);
  if (status.ok()) status = run_bench(options, settings.json, settings.html);
  return status.ok() ? 0 : report(status.error());
}

}  // namespace kivi
