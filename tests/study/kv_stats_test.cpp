// SPDX-License-Identifier: Apache-2.0
// `kivi kv-stats`: a small study from end to end, its recommendation, and its page.
#include <zlib.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "base/report/heat_map.h"
#include "study/kv_stats_page.h"
#include "study/kv_stats_report.h"
#include "study/kv_stats_run.h"

namespace kivi {

namespace {

KvStatsOptions stats_options() {
  KvStatsOptions o;
  o.engine.model = std::string(KIVI_SOURCE_DIR) + "/models/tales-falcon";
  o.engine.device = "cpu";
  o.text = std::string(KIVI_SOURCE_DIR) + "/tests/data/heldout_sample.txt";
  o.tokens = 512;
  o.window = 256;
  return o;
}

KvStatsReport study_or_fail(const KvStatsOptions& options) {
  auto report = study(options, [](const std::string&) {});
  if (!report.ok()) FAIL(report.error().message);
  return std::move(report).value();
}

std::string field_of_error(const KvStatsOptions& options) {
  const auto report = study(options, [](const std::string&) {});
  REQUIRE(!report.ok());
  return report.error().field;
}

// Every tag that opens is closed, in order: "" or what is wrong.
std::string nesting_error(const std::string& page) {
  std::vector<std::string> open;
  for (size_t at = page.find('<'); at != std::string::npos; at = page.find('<', at + 1)) {
    const size_t end = page.find('>', at);
    if (end == std::string::npos) return "no end at " + page.substr(at, 40);
    const std::string tag = page.substr(at + 1, end - at - 1);
    if (tag.starts_with("!") || tag.ends_with("/")) continue;
    const std::string name = tag.substr(tag.starts_with("/") ? 1 : 0, tag.find(' '));
    if (!tag.starts_with("/")) {
      open.push_back(name);
    } else if (open.empty() || open.back() != name) {
      return "</" + name + "> closes " + (open.empty() ? "nothing" : open.back());
    } else {
      open.pop_back();
    }
  }
  return open.empty() ? "" : open.back() + " is not closed";
}

}  // namespace

TEST_CASE("A study's report, JSON and page tell one story", "[long]") {
  const KvStatsReport report = study_or_fail(stats_options());
  CHECK(report.model == "tales-falcon");
  CHECK(report.text == "heldout_sample.txt");
  CHECK(report.statistics.layers.size() == 4);
  CHECK(report.statistics.windows == 2);
  CHECK(report.predicted == 2 * 255);
  const KvStatistics& s = report.statistics;
  const KvQuantizer channel{2, KvAxis::channel, 32}, token{2, KvAxis::token, 32};
  // The paper's first finding, on this model's keys.
  CHECK(mean_key_error(s, channel) < mean_key_error(s, token));
  CHECK(mean_score_error(s, channel) < mean_score_error(s, token));
  CHECK(mean_output_error(s, {channel, token}) < mean_output_error(s, {token, token}));
  const SimulatedQuality* kivi2 = find_quality(report, {channel, token}, 0);
  const SimulatedQuality* kivi2_r128 = find_quality(report, {channel, token}, 128);
  REQUIRE(kivi2 != nullptr);
  REQUIRE(kivi2_r128 != nullptr);
  CHECK(kivi2->format == "kivi2");
  CHECK(kivi2_r128->change < kivi2->change);  // the residual matters
  const std::vector<SimulatedQuality> by_group = key_groups(report);
  REQUIRE(by_group.size() == 3);
  CHECK(by_group[0].simulation.key.group == 32);
  CHECK(by_group[2].simulation.key.group == 128);
  CHECK(by_group[0].change < by_group[2].change);  // so does the group's size
  CHECK(by_group[0].change < kivi2->change);       // values in 16 bits

  // Of windows of one size the means are the means of the windows.
  REQUIRE(kivi2->window_rise.size() == 2);
  CHECK((kivi2->window_rise[0] + kivi2->window_rise[1]) / 2 ==
        Approx(kivi2->nll_rise).margin(1e-9));
  CHECK((kivi2_r128->window_change[0] + kivi2_r128->window_change[1]) / 2 ==
        Approx(kivi2_r128->change).margin(1e-9));
  // Values alone cost less than values and keys.
  const KvQuantizer whole{16, KvAxis::channel, 32};
  for (const KvQuantizer& axis : {token, channel}) {
    const SimulatedQuality* values = find_quality(report, {whole, axis}, 0);
    REQUIRE(values != nullptr);
    CHECK(values->change < find_quality(report, {channel, axis}, 0)->change);
  }

  const nlohmann::ordered_json json = kv_stats_json(report);
  CHECK(json["simulated"][0]["window_rise"].size() == 2);
  CHECK(json["layers"].size() == 4);
  CHECK(json["layers"][0]["keys"]["channel_mean"].size() == 64);
  CHECK(json["recommendation"]["format"] == report.recommendation.format);
  CHECK(json["mean"]["reconstruction"].size() == 2 * (3 + 2));  // along a token G is 32 or 64
  CHECK(json.dump().find("null") == std::string::npos);         // no NaN
  const std::string text = kv_stats_text(report);
  CHECK(text.find("recommended: " + text_of(report.recommendation)) != std::string::npos);

  KvStatsReport hostile = report;
  hostile.model = "a<b>\"&";
  const std::string page = kv_stats_page(hostile);
  CHECK(nesting_error(page).empty());
  CHECK(page.find("a&lt;b&gt;&quot;&amp;") != std::string::npos);
  CHECK(page.find("a<b>") == std::string::npos);
  CHECK(page.find("://") == std::string::npos);
  CHECK(page.find("<script") == std::string::npos);
  for (size_t at = page.find("src=\""); at != std::string::npos; at = page.find("src=\"", at + 1))
    CHECK(page.compare(at + 5, 22, "data:image/png;base64,") == 0);
  CHECK(page.find("prefers-color-scheme:dark") != std::string::npos);
  CHECK(page.size() < 200'000);
}

TEST_CASE("A standard error is of the mean, from the spread") {
  CHECK(standard_error({}) == 0);
  CHECK(standard_error({7}) == 0);
  CHECK(standard_error({1, 1, 1}) == 0);
  CHECK(standard_error({1, 2, 3, 4}) == Approx(0.6454972244));
}

TEST_CASE("Statistics alone: some layers, no perplexity, no recommendation") {
  KvStatsOptions o = stats_options();
  o.layers = {1, 3};
  o.perplexity = false;
  o.tokens = 200;  // a window shrinks to whole groups of what is asked for
  const KvStatsReport report = study_or_fail(o);
  REQUIRE(report.statistics.layers.size() == 2);
  CHECK(report.statistics.layers[1].layer == 3);
  CHECK(report.statistics.window == 128);
  CHECK(kv_stats_text(report).find("recommended") == std::string::npos);
  CHECK(!kv_stats_json(report).contains("recommendation"));
  CHECK(nesting_error(kv_stats_page(report)).empty());
}

TEST_CASE("What is wrong is named") {
  KvStatsOptions o = stats_options();
  o.text = "no/such/file.txt";
  CHECK(field_of_error(o) == "text");
  o = stats_options();
  o.window = 100;
  CHECK(field_of_error(o) == "window");
  o = stats_options();
  o.tokens = 127;
  CHECK(field_of_error(o) == "tokens");
  o = stats_options();
  o.layers = {4};
  CHECK(field_of_error(o) == "layers");
  o = stats_options();
  o.group = 128;  // head_dim is 64
  CHECK(field_of_error(o) == "group");
  o = stats_options();
  o.text = std::string(KIVI_SOURCE_DIR) + "/models/tales-falcon/generation_config.json";  // short
  CHECK(field_of_error(o) == "text");
  o = stats_options();
  o.engine.model = "no/such/model";
  CHECK(!study(o, [](const std::string&) {}).ok());
}

TEST_CASE("Layers as users write them") {
  CHECK(parse_layers("all").value().empty());
  CHECK(parse_layers("3").value() == std::vector<int>{3});
  CHECK(parse_layers("7,0,2-4,3").value() == std::vector<int>{0, 2, 3, 4, 7});
  for (const char* wrong : {"", "x", "1,", "-1", "4-2", "1-", "1 2", "0x1"}) {
    CAPTURE(wrong);
    CHECK(!parse_layers(wrong).ok());
  }
}

TEST_CASE("The recommendation is the smallest format within the threshold") {
  const std::vector<KvCandidate> candidates = {
      {"kivi4", 128, 5, 0.0005}, {"fp8", 0, 8, 0.0002},       {"kivi2", 32, 3, 0.03},
      {"kivi2", 128, 3, 0.008},  {"kivi-k4v2", 32, 4, 0.004}, {"kivi4", 32, 5, 0.001}};
  const auto with = [&](double rise) {
    return recommend(candidates, KvThresholds{rise}, 32, "kivi4");
  };
  CHECK(text_of(with(0.05)) == "kivi2, G 32, R 32");
  CHECK(text_of(with(0.03)) == "kivi2, G 32, R 32");  // at most
  CHECK(text_of(with(0.02)) == "kivi2, G 32, R 128");
  CHECK(text_of(with(0.005)) == "kivi-k4v2, G 32, R 32");
  CHECK(text_of(with(0.002)) == "kivi4, G 32, R 32");
  CHECK(text_of(with(0.0006)) == "kivi4, G 32, R 128");
  CHECK(text_of(with(0.0003)) == "fp8");
  CHECK(text_of(with(0.0001)) == "fp16");
  CHECK(with(0.002).difference.empty());
  CHECK(with(0.02).difference.find("kivi4 costs this model 0.0005 nats a token at R 128") !=
        std::string::npos);
  CHECK(bits_per_value(simulated_formats(32)[0].simulation) == 3);
  CHECK(bits_per_value(simulated_formats(128)[3].simulation) == 4.25);
}

TEST_CASE("Base64 and PNG are as their specifications have them") {
  const auto encoded = [](const std::string& text) {
    return data_uri(std::vector<uint8_t>(text.begin(), text.end())).substr(22);
  };
  CHECK(encoded("") == "");
  CHECK(encoded("f") == "Zg==");
  CHECK(encoded("fo") == "Zm8=");
  CHECK(encoded("foo") == "Zm9v");
  CHECK(encoded("foobar") == "Zm9vYmFy");

  const std::vector<uint8_t> png = png_of({2, 3, {0, 1, 4, 0, 0, 0}});
  const std::vector<uint8_t> magic(png.begin(), png.begin() + 8);
  CHECK(magic == std::vector<uint8_t>{0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'});
  CHECK(png[19] == 3);  // width
  CHECK(png[23] == 2);  // height
  // IEND with its well-known checksum ends the file.
  const std::vector<uint8_t> end(png.end() - 12, png.end());
  CHECK(end == std::vector<uint8_t>{0, 0, 0, 0, 'I', 'E', 'N', 'D', 0xae, 0x42, 0x60, 0x82});
  // A filter byte before each row; the values are 0, sqrt(1/4), 1.
  const std::vector<uint8_t> name = {'I', 'D', 'A', 'T'};
  const auto data = std::ranges::search(png, name);
  REQUIRE_FALSE(data.empty());
  std::vector<uint8_t> pixels(100);
  uLongf size = pixels.size();
  REQUIRE(uncompress(pixels.data(), &size, &*data.end(), uLong(*(data.begin() - 1))) == Z_OK);
  pixels.resize(size);
  CHECK(pixels == std::vector<uint8_t>{0, 0, 128, 255, 0, 0, 0, 0});
}

TEST_CASE("Downsampling keeps the largest value of each cell") {
  const HeatMap map{4, 4, {1, 2, 3, 4, 5, 6, 7, 8, 1, 1, 1, 1, 1, 9, 1, 1}};
  const HeatMap half = downsampled(map, 2, 2);
  CHECK(half.values == std::vector<float>{6, 8, 9, 1});
  CHECK(downsampled(map, 9, 9).values == map.values);
}

}  // namespace kivi
