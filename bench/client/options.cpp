// SPDX-License-Identifier: Apache-2.0
// Judges the flags of `kivi bench serve`. A flag that `vllm bench serve` has too bears the same
// name.
#include "bench/client/options.h"

#include <fmt/format.h>

#include <limits>
#include <map>
#include <nlohmann/json.hpp>

#include "bench/client/openai_body.h"
#include "bench/client/text.h"

namespace kivi::load {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

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

Status read_loads(const ServeFlags& f, ServeOptions& o) {
  for (const std::string& part : split(f.rates.empty() ? "inf" : f.rates, ',')) {
    const auto rate = part == "inf" ? std::optional(kInfinity) : parse_number<double>(part);
    if (!rate || *rate <= 0)
      return bad("request-rate", f.rates, "a list of numbers above 0 or inf, separated by commas");
    if (double(o.work.count) / *rate > kDueSecondsMax)
      return bad("request-rate", f.rates,
                 fmt::format("rates at which {} requests are due within {:g} seconds", o.work.count,
                             kDueSecondsMax));
    o.rates.push_back(*rate);
  }
  if (o.concurrency.empty()) o.concurrency.push_back(0);
  static const std::map<std::string, ArrivalKind> kArrivals = {{"", ArrivalKind::poisson},
                                                               {"poisson", ArrivalKind::poisson},
                                                               {"constant", ArrivalKind::constant},
                                                               {"burst", ArrivalKind::burst}};
  o.arrivals = kArrivals.at(f.arrivals);
  if (!o.trace.empty() && (!f.rates.empty() || !f.arrivals.empty()))
    return conflict("trace", "--request-rate or --arrivals");
  if (!o.trace.empty()) o.arrivals = ArrivalKind::trace;
  return ok_status();
}

Status read_server(ServeOptions& o) {
  o.request.chat = o.api == Api::chat;
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

Status read_work(const ServeFlags& f, ServeOptions& o) {
  const auto text_of = [](const std::optional<int>& n) { return n ? std::to_string(*n) : ""; };
  const std::pair<const char*, std::string> lengths[] = {{"input-len", f.input_len},
                                                         {"output-len", f.output_len},
                                                         {"prefix-len", text_of(f.prefix_len)},
                                                         {"prefix-count", text_of(f.prefix_count)}};
  for (const auto& [flag, value] : lengths) {
    if (!o.sharegpt.empty() && !value.empty())
      return bad(flag, value, "left out beside --sharegpt, whose conversations say what is asked");
  }
  const auto read = [&o](const std::string& text, double mean, const char* flag) {
    return named(parse_lengths(text.empty() ? "128" : text, mean, o.length_max), flag, text);
  };
  KIVI_ASSIGN_OR_RETURN(o.work.prompt, read(f.input_len, kShareGptPromptMean, "input-len"));
  KIVI_ASSIGN_OR_RETURN(o.work.output, read(f.output_len, kShareGptOutputMean, "output-len"));
  o.count_set = f.num_prompts.has_value();
  o.work.count = f.num_prompts.value_or(o.work.count);
  o.work.prefix_tokens = f.prefix_len.value_or(o.work.prefix_tokens);
  o.work.prefix_count = f.prefix_count.value_or(o.work.prefix_count);
  const bool text = f.prompt_format.empty() ? o.api == Api::chat : f.prompt_format == "text";
  o.work.format = text ? PromptFormat::text : PromptFormat::ids;
  if (o.api == Api::chat && !text)
    return bad("prompt-format", f.prompt_format, "text with --api chat");
  if (!o.tokenizer.empty() && o.sharegpt.empty())
    return Error{ErrorCode::invalid,
                 "--tokenizer needs --sharegpt. Add it, or leave out --tokenizer", "tokenizer"};
  if (!f.goodput.empty()) {
    KIVI_ASSIGN_OR_RETURN(o.slo, named(parse_slo(f.goodput), "goodput", f.goodput));
  }
  return ok_status();
}

}  // namespace

Status judge(const ServeFlags& flags, ServeOptions& options) {
  KIVI_RETURN_IF_ERROR(read_server(options));
  KIVI_RETURN_IF_ERROR(read_work(flags, options));
  return read_loads(flags, options);
}

}  // namespace kivi::load
