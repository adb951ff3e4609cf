// SPDX-License-Identifier: Apache-2.0
// The flags of `kivi bench serve`. A flag that `vllm bench serve` has too bears the same name.
#include "bench/client/options.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>

#include "bench/client/openai_body.h"
#include "bench/client/text.h"

namespace kivi::load {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// The text of flags whose values have a grammar of their own.
struct Words {
  std::string api = "completions";
  std::string input_len = "128", output_len = "128";
  std::string prompt_format;  // "": ids, but text for chats
  std::string arrivals = "poisson";
  std::string rates, concurrency;
  std::string goodput;
  double temperature = 0;
};

void add_server_flags(CLI::App& app, ServeOptions& o, Words& w) {
  const std::string group = "Server";
  const auto add = [&](const std::string& name, auto& field, const std::string& help) {
    return app.add_option(name, field, help)->group(group);
  };
  add("--api", w.api, "Speak this API: completions or chat (OpenAI, over HTTP), or grpc (kivi.v1).")
      ->check(CLI::IsMember({"completions", "chat", "grpc"}));
  add("--base-url", o.base_url,
      "Send HTTP requests to this OpenAI-compatible server: http://HOST[:PORT][/PATH].");
  add("--grpc-target", o.target, "Send gRPC requests to this HOST:PORT (empty = 127.0.0.1:50051).");
  add("--endpoint", o.endpoint,
      "Send HTTP requests to this path (empty = /v1/completions or /v1/chat/completions).");
  add("--model", o.request.model,
      "Ask for this model (empty = the first model that the server lists).");
  add("--api-key", o.request.api_key, "Send this API key as a bearer token (empty = none).");
  add("--extra-body", o.request.extra_body,
      "Add the fields of this JSON object to each HTTP request (empty = none).");
  add("--timeout", o.request.timeout_s,
      "Give up a request after this many seconds, connecting included.")
      ->check(CLI::Range(0.001, 86400.0));
}

void add_work_flags(CLI::App& app, ServeOptions& o, Words& w) {
  const std::string group = "Work";
  const auto add = [&](const std::string& name, auto& field, const std::string& help) {
    return app.add_option(name, field, help)->group(group);
  };
  add("--num-prompts", o.work.count, "Send this many requests in each run.")
      ->check(CLI::Range(1, 1 << 24));
  add("--num-warmups", o.warmups,
      "Send this many unmeasured requests before the first run (0 = none).")
      ->check(CLI::Range(0, 1 << 20));
  add("--seed", o.work.seed,
      "Seed the random prompts. Runs with the same seed send the same requests at every rate and "
      "concurrency.");
  add("--input-len", w.input_len,
      "Make prompts of this many tokens: N, MIN:MAX (uniform), lognormal:MEAN[:SIGMA], or sharegpt "
      "(log-normal, mean 161).");
  add("--output-len", w.output_len,
      "Ask for outputs of this many tokens: the same forms; sharegpt has mean 338.");
  add("--sharegpt", o.sharegpt,
      "Take prompts and output lengths from this ShareGPT JSON file instead of --input-len and "
      "--output-len (empty = no file).");
  add("--tokenizer", o.tokenizer,
      "Count the tokens of --sharegpt with the tokenizer of this folder or GGUF file (empty = 4 "
      "bytes a token).");
  add("--max-len", o.length_max,
      "Limit lengths that come from a distribution or a file to this many tokens.")
      ->check(CLI::Range(16, kTokensMax));
  add("--prompt-format", w.prompt_format,
      "Send prompts as random token ids (ids) or as random words (text); empty = ids, for chats "
      "text.")
      ->check(CLI::IsMember({"ids", "text"}));
  add("--vocab-size", o.work.vocab_size,
      "Draw token ids from the middle half of a vocabulary of this size (0 = the server's size, "
      "else 1000).")
      ->check(CLI::Range(16, 1 << 24));
  add("--prefix-len", o.work.prefix_tokens,
      "Begin prompts with this many tokens in common (0 = none).")
      ->check(CLI::Range(0, kTokensMax));
  add("--prefix-count", o.work.prefix_count, "Use this many different common beginnings.")
      ->check(CLI::Range(1, 1 << 20));
  add("--cancel-share", o.work.cancel_share, "Cancel this share of the requests, from 0 to 1.")
      ->check(CLI::Range(0.0, 1.0));
  add("--cancel-after", o.work.cancel_after, "Cancel those requests after this many tokens.")
      ->check(CLI::Range(1, kTokensMax));
  app.add_flag("--ignore-eos", o.request.ignore_eos,
               "Generate outputs of exactly the length that --output-len gives.")
      ->group(group);
  add("--temperature", w.temperature,
      "Send this sampling temperature (unset = the server's default).")
      ->check(CLI::Range(0.0, 100.0));
}

void add_time_flags(CLI::App& app, ServeOptions& o, Words& w) {
  const std::string group = "Load";
  const auto add = [&](const std::string& name, auto& field, const std::string& help) {
    return app.add_option(name, field, help)->group(group);
  };
  add("--request-rate", w.rates,
      "Send this many requests a second, one run for each rate: 1,2,4. inf = keep "
      "--max-concurrency requests in flight at all times (unset = inf).");
  add("--max-concurrency,--concurrency", w.concurrency,
      "Keep at most this many requests in flight, one run for each number: 1,8,32 (unset = no "
      "limit; at rate inf, all requests start at once).");
  add("--arrivals", w.arrivals,
      "Space requests like a Poisson process (poisson), evenly (constant) or in bursts (burst).")
      ->check(CLI::IsMember({"poisson", "constant", "burst"}));
  add("--burst-size", o.burst_size, "Send this many requests at once with --arrivals burst.")
      ->check(CLI::Range(1, 1 << 20));
  add("--trace", o.trace,
      "Send requests at the times in this file, in seconds, one a line (empty = no file).");
  add("--threads", o.threads, "Run the load generator on this many threads.")
      ->check(CLI::Range(1, 256));
}

void add_output_flags(CLI::App& app, ServeOptions& o, Words& w) {
  const std::string group = "Output";
  const auto add = [&](const std::string& name, auto& field, const std::string& help) {
    return app.add_option(name, field, help)->group(group);
  };
  add("--goodput", w.goodput,
      "Count a request as good if it keeps these limits in ms: ttft:200,tpot:50,e2el:5000 (empty = "
      "no limits).");
  add("--json", o.json,
      "Write the figures to this file, with the keys of vllm bench serve (empty = no file).");
  app.add_flag("--save-detailed", o.detailed, "Add the figures of each request to the JSON file.")
      ->group(group);
  add("--html", o.html, "Write a page with plots to this file (empty = no file).");
  app.add_flag("!--no-progress", o.progress, "Show no progress bar.")->group(group);
}

Error bad(const char* flag, const std::string& value, const std::string& expected) {
  return Error{ErrorCode::invalid, fmt::format("--{} is \"{}\", must be {}", flag, value, expected),
               flag};
}

Error conflict(const char* flag, const std::string& other) {
  return Error{ErrorCode::invalid,
               fmt::format("--{} cannot be combined with {}. Leave one of them out", flag, other),
               flag};
}

template <class T>
Result<T> named(Result<T> result, const char* flag, const std::string& value) {
  if (result.ok()) return result;
  return bad(flag, value, result.error().message);
}

Status read_loads(const Words& w, const CLI::App& app, ServeOptions& o) {
  const bool rates_set = app.count("--request-rate") > 0;
  const bool concurrency_set = app.count("--max-concurrency") > 0;
  for (const std::string& part : split(rates_set ? w.rates : "inf", ',')) {
    const auto rate = part == "inf" ? std::optional(kInfinity) : parse_number<double>(part);
    if (!rate || *rate <= 0)
      return bad("request-rate", w.rates, "a list of numbers above 0 or inf, separated by commas");
    if (double(o.work.count) / *rate > kDueSecondsMax)
      return bad("request-rate", w.rates,
                 fmt::format("rates at which {} requests are due within {:g} seconds", o.work.count,
                             kDueSecondsMax));
    o.rates.push_back(*rate);
  }
  for (const std::string& part : split(concurrency_set ? w.concurrency : "0", ',')) {
    const auto count = parse_number<int>(part);
    if (!count || *count < (concurrency_set ? 1 : 0) || *count > 1 << 20)
      return bad("max-concurrency", w.concurrency,
                 "a list of integers of at least 1, separated by commas");
    o.concurrency.push_back(*count);
  }
  if (!o.trace.empty() && (rates_set || app.count("--arrivals") > 0))
    return conflict("trace", "--request-rate or --arrivals");
  if (!o.trace.empty()) o.arrivals = ArrivalKind::trace;
  return ok_status();
}

Status read_server(const Words& w, ServeOptions& o) {
  static const std::map<std::string, Api> kApis = {
      {"completions", Api::completions}, {"chat", Api::chat}, {"grpc", Api::grpc}};
  o.api = kApis.at(w.api);
  o.request.chat = o.api == Api::chat;
  if (o.target.empty()) o.target = "127.0.0.1:50051";
  if (o.endpoint.empty())
    o.endpoint = o.api == Api::chat ? "/v1/chat/completions" : "/v1/completions";
  if (!o.endpoint.starts_with('/')) return bad("endpoint", o.endpoint, "a path that begins with /");
  KIVI_RETURN_IF_ERROR(named(parse_url(o.base_url), "base-url", o.base_url));
  if (!o.request.extra_body.empty() &&
      !nlohmann::json::parse(o.request.extra_body, nullptr, false).is_object())
    return bad("extra-body", o.request.extra_body, "a JSON object");
  if (!o.request.extra_body.empty() && o.api == Api::grpc)
    return conflict("extra-body", "--api grpc");
  return ok_status();
}

Status read_work(const Words& w, const CLI::App& app, ServeOptions& o) {
  for (const char* flag : {"input-len", "output-len", "prefix-len", "prefix-count"}) {
    const CLI::Option* option = app.get_option(fmt::format("--{}", flag));
    if (!o.sharegpt.empty() && option->count() > 0)
      return bad(flag, option->results().front(),
                 "left out beside --sharegpt, whose conversations say what is asked");
  }
  KIVI_ASSIGN_OR_RETURN(o.work.prompt,
                        named(parse_lengths(w.input_len, kShareGptPromptMean, o.length_max),
                              "input-len", w.input_len));
  KIVI_ASSIGN_OR_RETURN(o.work.output,
                        named(parse_lengths(w.output_len, kShareGptOutputMean, o.length_max),
                              "output-len", w.output_len));
  const bool text = w.prompt_format.empty() ? o.api == Api::chat : w.prompt_format == "text";
  o.work.format = text ? PromptFormat::text : PromptFormat::ids;
  if (o.api == Api::chat && !text)
    return bad("prompt-format", w.prompt_format, "text with --api chat");
  if (!o.tokenizer.empty() && o.sharegpt.empty())
    return Error{ErrorCode::invalid,
                 "--tokenizer needs --sharegpt. Add it, or leave out --tokenizer", "tokenizer"};
  if (!w.goodput.empty()) {
    KIVI_ASSIGN_OR_RETURN(o.slo, named(parse_slo(w.goodput), "goodput", w.goodput));
  }
  return ok_status();
}

}  // namespace

Result<std::optional<ServeOptions>> parse_serve_options(const std::vector<std::string>& args) {
  CLI::App app("Sends load to a running server and measures what its clients see.",
               "kivi bench serve");
  ServeOptions o;
  Words w;
  add_server_flags(app, o, w);
  add_work_flags(app, o, w);
  add_time_flags(app, o, w);
  add_output_flags(app, o, w);
  try {
    app.parse(std::vector<std::string>(args.rbegin(), args.rend()));
  } catch (const CLI::CallForHelp&) {
    fmt::print("{}", app.help());
    return std::optional<ServeOptions>();
  } catch (const CLI::ParseError& e) {
    return Error{ErrorCode::invalid, e.what()};
  }
  o.count_set = app.count("--num-prompts") > 0;
  if (app.count("--temperature") > 0) o.request.temperature = w.temperature;
  static const std::map<std::string, ArrivalKind> kArrivals = {{"poisson", ArrivalKind::poisson},
                                                               {"constant", ArrivalKind::constant},
                                                               {"burst", ArrivalKind::burst}};
  o.arrivals = kArrivals.at(w.arrivals);
  KIVI_RETURN_IF_ERROR(read_server(w, o));
  KIVI_RETURN_IF_ERROR(read_work(w, app, o));
  KIVI_RETURN_IF_ERROR(read_loads(w, app, o));
  return std::optional(std::move(o));
}

}  // namespace kivi::load
