// SPDX-License-Identifier: Apache-2.0
// `kivi tune` on a demo model and a few short windows: what it promises of any result, and what it
// refuses.
#include "study/kv_tune.h"

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "engine/serving/memory_plan.h"

namespace kivi {

namespace {

TuneOptions tune_options() {
  TuneOptions o;
  o.engine.model = std::string(KIVI_SOURCE_DIR) + "/models/tales-mistral";
  o.engine.device = "cpu";
  o.engine.kv_cache_dtype = "kivi4.5";
  o.engine.kivi_residual_length = 32;
  o.engine.kv_cache_memory_bytes = 32 << 20;
  o.text = std::string(KIVI_SOURCE_DIR) + "/tests/data/heldout_sample.txt";
  o.window = 160;
  o.windows = 1;
  o.check_windows = 1;
  o.budgets = {{3, true}, {4.5, true}};
  return o;
}

std::string message_of(const TuneOptions& o) {
  const auto report = tune_layer_bits(o, [](const std::string&) {});
  return report.ok() ? "" : report.error().message;
}

}  // namespace

TEST_CASE("A tuned table keeps its budget and is estimated no worse than any plain format in it",
          "[long]") {
  const auto report = tune_layer_bits(tune_options(), [](const std::string&) {});
  if (!report.ok()) FAIL(report.error().message);
  REQUIRE(report->uniform.size() == 4);
  REQUIRE(report->tuned.size() == 2);
  CHECK(report->format == "kivi4.5 G32 R32 S32");
  REQUIRE(int(report->costs.size()) == report->layers);
  const TuneRow& wide = report->uniform[0];
  const TuneRow& narrow = report->uniform[3];
  CHECK(wide.bits_per_value == Approx(4.5));
  CHECK(narrow.bits_per_value == Approx(2.5));
  CHECK(narrow.search.mean > 2 * wide.search.mean);
  CHECK(narrow.check.mean > wide.check.mean);
  CHECK(wide.estimate == wide.search.mean);
  const TuneRow& tuned = report->tuned[0];
  CHECK(tuned.bits_per_value <= 3);
  CHECK(tuned.bits_per_value > 2.5);
  for (const TuneRow& row : report->uniform)
    if (row.bytes_per_token <= tuned.bytes_per_token) CHECK(tuned.estimate <= row.estimate);
  CHECK(tuned.search.mean < narrow.search.mean);
  // The whole budget: nothing is given up that costs anything.
  CHECK(report->tuned[1].estimate == Approx(wide.estimate));
  // The estimate is one: within a factor of two of what is measured, on layers that add up.
  CHECK(tuned.estimate > tuned.search.mean / 2);
  CHECK(tuned.estimate < tuned.search.mean * 2);
  CHECK_THAT(tune_text(*report), Catch::Contains(describe(tuned.bits)));
  const auto json = tune_json(*report);
  CHECK(json["tables"].size() == 6);
  CHECK(int(json["tables"][4]["key_bits"].size()) == report->layers);
}

TEST_CASE("kivi tune refuses budgets, formats and texts that it cannot use") {
  TuneOptions o = tune_options();
  o.budgets.clear();
  CHECK_THAT(message_of(o), Catch::Contains("--budget is missing"));
  o.budgets = {{2.4, true}};
  CHECK_THAT(message_of(o), Catch::Contains("--budget is 2.4 bits, must be at least"));
  CHECK_THAT(message_of(o), Catch::Contains("2.5 bits a value"));
  o = tune_options();
  o.engine.kv_cache_dtype = "fp8";
  CHECK_THAT(message_of(o), Catch::Contains("must be a KIVI format"));
  o = tune_options();
  o.windows = 100000;
  CHECK_THAT(message_of(o), Catch::Contains("must hold --windows 100000"));
  o = tune_options();
  o.reference_bytes = 1000;
  CHECK_THAT(message_of(o), Catch::Contains("--reference-bytes 1000"));
  o = tune_options();
  o.text = "/nowhere";
  CHECK_THAT(message_of(o), Catch::Contains("--text /nowhere"));
}

}  // namespace kivi
