// SPDX-License-Identifier: Apache-2.0
// The flags of `kivi bench serve`: what is meant is understood, what is not is refused by name.
#include <catch2/catch.hpp>
#include <cmath>

#include "bench/client/progress.h"
#include "tools/flags.h"

namespace kivi::load {
namespace {

using Arguments = std::vector<std::string>;

Result<ServeOptions> try_parse(const Arguments& args) {
  Settings settings;
  KIVI_ASSIGN_OR_RETURN(const ParseOutcome outcome,
                        parse_settings(kBenchServe, args, {}, settings));
  CHECK(outcome.help.empty());
  KIVI_RETURN_IF_ERROR(judge(settings.bench_serve_flags, settings.bench_serve));
  return settings.bench_serve;
}

ServeOptions parse(const Arguments& args) {
  const auto options = try_parse(args);
  if (!options.ok()) FAIL(options.error().message);
  return *options;
}

TEST_CASE("Rates and concurrencies make the runs") {
  const ServeOptions plain = parse({});
  CHECK(plain.rates.size() == 1);
  CHECK(std::isinf(plain.rates.front()));
  CHECK(plain.concurrency == std::vector<int>{0});
  CHECK(plain.work.format == PromptFormat::ids);
  const ServeOptions sweep = parse({"--request-rate", "1,2.5,inf", "--max-concurrency", "4,8"});
  CHECK(sweep.rates[1] == 2.5);
  CHECK(std::isinf(sweep.rates[2]));
  CHECK(sweep.concurrency == std::vector<int>{4, 8});
  CHECK(parse({"--concurrency", "3"}).concurrency == std::vector<int>{3});
}

TEST_CASE("Flags reach what they are for") {
  const ServeOptions o = parse({"--api",
                                "chat",
                                "--base-url",
                                "http://h:9/x",
                                "--num-prompts",
                                "7",
                                "--seed",
                                "5",
                                "--input-len",
                                "4:8",
                                "--output-len",
                                "sharegpt",
                                "--cancel-share",
                                "0.5",
                                "--cancel-after",
                                "9",
                                "--ignore-eos",
                                "--temperature",
                                "0",
                                "--goodput",
                                "ttft:100,tpot:20",
                                "--arrivals",
                                "burst",
                                "--burst-size",
                                "3",
                                "--no-progress",
                                "--timeout",
                                "1.5",
                                "--extra-body",
                                "{}"});
  CHECK(o.api == Api::chat);
  CHECK(o.request.chat);
  CHECK(o.endpoint == "/v1/chat/completions");
  CHECK(o.work.format == PromptFormat::text);
  CHECK(o.work.count == 7);
  CHECK(o.count_set);
  CHECK(o.work.prompt.max == 8);
  CHECK(o.work.output.mean == kShareGptOutputMean);
  CHECK(o.request.ignore_eos);
  CHECK(o.request.temperature == 0.0);
  CHECK(o.slo.tpot == 20);
  CHECK_FALSE(o.slo.e2el.has_value());
  CHECK(o.arrivals == ArrivalKind::burst);
  CHECK_FALSE(o.progress);
  CHECK(parse({"--trace", "f"}).arrivals == ArrivalKind::trace);
  CHECK_FALSE(parse({}).request.temperature.has_value());
}

TEST_CASE("A mistake names its flag, its value and what was expected") {
  struct Case {
    Arguments args;
    std::vector<std::string> parts;
  };
  const Case cases[] = {
      {{"--request-rate", "1,x"}, {"--request-rate", "1,x", "numbers above 0"}},
      {{"--request-rate", "0"}, {"--request-rate", "numbers above 0"}},
      {{"--request-rate", "nan"}, {"--request-rate", "nan"}},
      {{"--request-rate", "4,1e-300"}, {"--request-rate", "4,1e-300", "1e+09 seconds"}},
      {{"--sharegpt", "f", "--input-len", "9"}, {"--input-len", "9", "beside --sharegpt"}},
      {{"--sharegpt", "f", "--output-len", "9"}, {"--output-len", "9", "beside --sharegpt"}},
      {{"--sharegpt", "f", "--prefix-len", "9"}, {"--prefix-len", "9", "beside --sharegpt"}},
      {{"--max-concurrency", "0"}, {"--max-concurrency", "at least 1"}},
      {{"--max-concurrency", ""}, {"--max-concurrency"}},
      {{"--input-len", "9:3"}, {"--input-len", "9:3", "1 <= MIN <= MAX"}},
      {{"--output-len", "lots"}, {"--output-len", "lots", "lognormal:MEAN"}},
      {{"--goodput", "ttft:fast"}, {"--goodput", "ttft:fast", "NAME:MILLISECONDS"}},
      {{"--base-url", "https://h"}, {"--base-url", "https://h", "http://HOST"}},
      {{"--endpoint", "v1"}, {"--endpoint", "v1", "begins with /"}},
      {{"--extra-body", "[1]"}, {"--extra-body", "[1]", "a JSON object"}},
      {{"--extra-body", "{}", "--api", "grpc"}, {"--extra-body", "--api"}},
      {{"--trace", "f", "--request-rate", "2"}, {"--trace", "--request-rate"}},
      {{"--api", "chat", "--prompt-format", "ids"}, {"--prompt-format", "ids", "text"}},
      {{"--tokenizer", "t"}, {"--tokenizer", "--sharegpt"}},
      {{"--num-prompts", "0"}, {"--num-prompts", "0", "1"}},
      {{"--cancel-share", "2"}, {"--cancel-share", "2"}},
      {{"--api", "ftp"}, {"--api", "ftp"}},
      {{"--nothing"}, {"--nothing"}},
  };
  for (const Case& c : cases) {
    CAPTURE(c.args);
    const auto options = try_parse(c.args);
    REQUIRE_FALSE(options.ok());
    CHECK(options.error().code == ErrorCode::invalid);
    for (const std::string& part : c.parts) {
      CAPTURE(options.error().message, part);
      CHECK(options.error().message.find(part) != std::string::npos);
    }
  }
}

TEST_CASE("The progress bar's line says how far it is") {
  const std::string line = ProgressBar::line("rate 4", 10, 8, 5, 1, 300, 2);
  for (const char* part : {"rate 4", "5/10", "3 in flight", "150 tokens/s", "1 failed"})
    CHECK(line.find(part) != std::string::npos);
}

}  // namespace
}  // namespace kivi::load
