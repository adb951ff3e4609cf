// SPDX-License-Identifier: Apache-2.0
// `kivi bench kernels`: the figures follow from time, bytes and operations, and every op of every
// format that was asked for is measured.
#include <catch2/catch.hpp>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "bench/kernels_report.h"

namespace kivi {
namespace {

KernelBenchmark measure(const std::string& model, const KernelBenchmarkOptions& options) {
  EngineConfig config;
  config.model = std::string(KIVI_SOURCE_DIR) + "/models/" + model;
  config.device = "cpu";
  config.threads = 1;
  config.kivi_residual_length = 32;
  auto result = benchmark_kernels(config, options, {});
  if (!result.ok()) FAIL(result.error().message);
  return std::move(result).value();
}

}  // namespace

TEST_CASE("Figures are bytes and operations over time, beside the device's rates") {
  KernelBenchmark b;
  b.copy_bytes_per_s = 2e12;
  b.matrix_flops_per_s = 5e14;
  const KernelMeasurement m{"kv_attend", "(8, 4096)", "kivi2 G32 R32", 50e-6, 80'000'000, 1e9, ""};
  const KernelFigures f = figures_of(b, m);
  CHECK(f.microseconds == Approx(50));
  CHECK(f.gb_s == Approx(1600));
  CHECK(f.copy_share == Approx(0.8));
  CHECK(f.tflop_s == Approx(20));
  CHECK(f.matrix_share == Approx(0.04));
  b.rows = {m, {"kv_attend", "(9, 9)", "fp16", 0, 0, 0, "no memory for it"}};
  const auto json = kernels_json(b);
  CHECK(json["rows"][0]["us"] == Approx(50));
  CHECK(json["rows"][1]["skipped"] == "no memory for it");
  CHECK_FALSE(json["rows"][1].contains("us"));
  CHECK(kernels_line(b, b.rows[1]).find("skipped: no memory for it") != std::string::npos);
  CHECK(kernels_line(b, m).find("80.0") != std::string::npos);
}

TEST_CASE("Every op and every format of two families is measured on the CPU", "[long]") {
  KernelBenchmarkOptions options;
  options.rows = {1, 40};
  options.caches = {{2, 100}};
  for (const char* model : {"tales-llama", "tales-falcon"}) {
    const KernelBenchmark b = measure(model, options);
    CHECK(b.copy_bytes_per_s > 1e8);
    CHECK(b.matrix_flops_per_s > 1e8);
    std::map<std::string, std::set<std::string>> formats;
    for (const KernelMeasurement& m : b.rows) {
      INFO(m.op << " " << m.shape << " " << m.format);
      CHECK(m.skipped.empty());
      CHECK(m.seconds > 0);
      CHECK(m.bytes > 0);
      formats[m.op].insert(m.format);
    }
    for (const std::string& op : kernel_op_names()) {
      INFO(op);
      CHECK(formats[op].size() == (op.starts_with("kv_") ? 8 : 1));
    }
  }
}

TEST_CASE("Bytes of a decode over tales-llama's cache, and only what was asked for") {
  KernelBenchmarkOptions options;
  options.ops = {"kv_attend"};
  options.formats = {"fp16", "kivi2"};
  options.caches = {{3, 65}};
  const KernelBenchmark b = measure("tales-llama", options);
  REQUIRE(b.rows.size() == 2);
  // tales-llama: see its config.json; 64 cached tokens and the row's own.
  const auto config = nlohmann::json::parse(
      std::ifstream(std::string(KIVI_SOURCE_DIR) + "/models/tales-llama/config.json"));
  const int64_t heads = config["num_key_value_heads"];
  const int64_t d =
      config["hidden_size"].get<int64_t>() / config["num_attention_heads"].get<int64_t>();
  CHECK(b.rows[0].bytes == 3 * heads * 65 * 4 * d);
  // kivi2 R 32: 64 keys and 32 values of d / 4 + d / 8 bytes, 32 values and the own row in 16 bits.
  CHECK(b.rows[1].bytes == 3 * heads * ((64 + 32) * (d / 4 + d / 8) + 32 * 2 * d + 4 * d));
  CHECK(b.rows[1].format == "kivi2 G32 R32");
}

TEST_CASE("An unknown op, format or size is an error that names it") {
  EngineConfig config;
  config.model = std::string(KIVI_SOURCE_DIR) + "/models/tales-llama";
  config.device = "cpu";
  const auto error = [&](const KernelBenchmarkOptions& options) {
    const auto result = benchmark_kernels(config, options, {});
    return result.ok() ? "no error" : result.error().message;
  };
  CHECK(error({.ops = {"matmull"}}).find("ops holds \"matmull\"") != std::string::npos);
  CHECK(error({.rows = {0}}).find("rows holds 0") != std::string::npos);
  CHECK(error({.caches = {{1, 1}}}).find("caches holds 1x1") != std::string::npos);
  CHECK(error({.ops = {"kv_attend"}, .formats = {"kivi3"}}).find("kivi3") != std::string::npos);
}

}  // namespace kivi
