// The flags of `kivi bench serve`; the names are those of `vllm bench serve` where it has the
// thing.
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

// Flags whose values have a grammar of their own, as they were written.
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
  add("--api", w.api, "completions, chat (OpenAI, over HTTP) or grpc (kivi.v1)")
      ->check(CLI::IsMember({"completions", "chat", "grpc"}));
  add("--base-url", o.base_url, "http://HOST[:PORT][/PATH] of an OpenAI-compatible server");
  add("--grpc-target", o.target, "HOST:PORT of a gRPC server; default 127.0.0.1:50051");
  add("--endpoint", o.endpoint, "path; default /v1/completions or /v1/chat/completions");
  add("--model", o.request.model, "name that requests carry; default: the first the server lists");
  add("--api-key", o.request.api_key, "sent as a bearer token");
  add("--extra-body", o.request.extra_body, "JSON object, added to each HTTP request's");
  add("--timeout", o.request.timeout_s, "seconds for a request, connecting included")
      ->check(CLI::Range(0.001, 86400.0));
}

void add_work_flags(CLI::App& app, ServeOptions& o, Words& w) {
  const std::string group = "Work";
  const auto add = [&](const std::string& name, auto& field, const std::string& help) {
    return app.add_option(name, field, help)->group(group);
  };
  add("--num-prompts", o.work.count, "requests of a run")->check(CLI::Range(1, 1 << 24));
  add("--num-warmups", o.warmups, "requests before the first run, not measured")
      ->check(CLI::Range(0, 1 << 20));
  add("--seed", o.work.seed, "the same seed asks the same, at every rate and concurrency");
  add("--input-len", w.input_len,
      "tokens of a prompt: N, MIN:MAX (uniform), lognormal:MEAN[:SIGMA], or sharegpt (log-normal, "
      "mean 161)");
  add("--output-len", w.output_len, "tokens of an output: likewise; sharegpt: mean 338");
  add("--sharegpt", o.sharegpt, "JSON file of conversations, instead of the two");
  add("--tokenizer", o.tokenizer,
      "with --sharegpt: folder or GGUF file that counts its tokens; default: a token is 4 bytes");
  add("--max-len", o.length_max, "longest prompt or output of a distribution or file")
      ->check(CLI::Range(16, kTokensMax));
  add("--prompt-format", w.prompt_format,
      "ids (random tokens) or text (random words); default ids, for chats text")
      ->check(CLI::IsMember({"ids", "text"}));
  add("--vocab-size", o.work.vocab_size,
      "ids are drawn from its middle half; default: the server's, else 1000")
      ->check(CLI::Range(16, 1 << 24));
  add("--prefix-len", o.work.prefix_tokens, "tokens that prompts begin with in common")
      ->check(CLI::Range(0, kTokensMax));
  add("--prefix-count", o.work.prefix_count, "different common beginnings")
      ->check(CLI::Range(1, 1 << 20));
  add("--cancel-share", o.work.cancel_share, "share of the requests to cut short")
      ->check(CLI::Range(0.0, 1.0));
  add("--cancel-after", o.work.cancel_after, "tokens after which they are cut")
      ->check(CLI::Range(1, kTokensMax));
  app.add_flag("--ignore-eos", o.request.ignore_eos, "outputs of the length that is asked for")
      ->group(group);
  add("--temperature", w.temperature, "default: the server's")->check(CLI::Range(0.0, 100.0));
}

void add_time_flags(CLI::App& app, ServeOptions& o, Words& w) {
  const std::string group = "Load";
  const auto add = [&](const std::string& name, auto& field, const std::string& help) {
    return app.add_option(name, field, help)->group(group);
  };
  add("--request-rate", w.rates,
      "requests a second, a run each: 1,2,4; default inf: a closed loop of --max-concurrency");
  add("--max-concurrency,--concurrency", w.concurrency,
      "requests in flight at most, a run each: 1,8,32; default no limit (rate inf: all at once)");
  add("--arrivals", w.arrivals, "poisson, constant or burst")
      ->check(CLI::IsMember({"poisson", "constant", "burst"}));
  add("--burst-size", o.burst_size, "requests at once, with --arrivals burst")
      ->check(CLI::Range(1, 1 << 20));
  add("--trace", o.trace, "file of the seconds at which requests are due, a line each");
  add("--threads", o.threads, "of this program")->check(CLI::Range(1, 256));
}

void add_output_flags(CLI::App& app, ServeOptions& o, Words& w) {
  const std::string group = "Output";
  const auto add = [&](const std::string& name, auto& field, const std::string& help) {
    return app.add_option(name, field, help)->group(group);
  };
  add("--goodput", w.goodput, "limits in ms that a good request keeps: ttft:200,tpot:50,e2el:5000");
  add("--json", o.json, "file for the figures, with vLLM's keys");
  app.add_flag("--save-detailed", o.detailed, "each request's figures into the JSON too")
      ->group(group);
  add("--html", o.html, "file for a page with plots");
  app.add_flag("!--no-progress", o.progress, "no progress bar")->group(group);
}

Error bad(const char* flag, const std::string& value, const std::string& expected) {
  return Error{ErrorCode::invalid,
               fmt::format("--{} is \"{}\", expected {}", flag, value, expected), flag};
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
      return bad("request-rate", w.rates, "numbers above 0, or inf, separated by commas");
    if (double(o.work.count) / *rate > kDueSecondsMax)
      return bad("request-rate", w.rates,
                 fmt::format("rates at which {} requests are due within {:g} seconds", o.work.count,
                             kDueSecondsMax));
    o.rates.push_back(*rate);
  }
  for (const std::string& part : split(concurrency_set ? w.concurrency : "0", ',')) {
    const auto count = parse_number<int>(part);
    if (!count || *count < (concurrency_set ? 1 : 0) || *count > 1 << 20)
      return bad("max-concurrency", w.concurrency, "integers of at least 1, separated by commas");
    o.concurrency.push_back(*count);
  }
  if (!o.trace.empty() && (rates_set || app.count("--arrivals") > 0))
    return bad("trace", o.trace, "no --request-rate and no --arrivals beside it");
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
    return bad("extra-body", o.request.extra_body, "--api completions or chat beside it");
  return ok_status();
}

Status read_work(const Words& w, const CLI::App& app, ServeOptions& o) {
  for (const char* flag : {"input-len", "output-len", "prefix-len", "prefix-count"}) {
    const CLI::Option* option = app.get_option(fmt::format("--{}", flag));
    if (!o.sharegpt.empty() && option->count() > 0)
      return bad(flag, option->results().front(),
                 "no --sharegpt beside it, whose conversations say what is asked");
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
    return bad("prompt-format", w.prompt_format, "text, which is all that a chat takes");
  if (!o.tokenizer.empty() && o.sharegpt.empty())
    return bad("tokenizer", o.tokenizer, "--sharegpt beside it");
  if (!w.goodput.empty()) {
    KIVI_ASSIGN_OR_RETURN(o.slo, named(parse_slo(w.goodput), "goodput", w.goodput));
  }
  return ok_status();
}

}  // namespace

Result<std::optional<ServeOptions>> parse_serve_options(const std::vector<std::string>& args) {
  CLI::App app("Loads a running server and measures what its clients see.", "kivi bench serve");
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
