// The grid of `kivi eval`, its results file, and what it refuses.
#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "tools/eval_report.h"
#include "tools/eval_results.h"
#include "tools/eval_run.h"

namespace kivi {

namespace {

namespace fs = std::filesystem;

// A folder that is empty at the beginning and gone at the end.
struct Folder {
  fs::path path = fs::temp_directory_path() / "kivi_eval_test";
  Folder() {
    fs::remove_all(path);
    fs::create_directories(path);
  }
  ~Folder() { fs::remove_all(path); }
  std::string file(const std::string& name) const { return (path / name).string(); }
};

std::string read(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

EvalOptions options_in(const Folder& folder) {
  EvalOptions o;
  o.engine.model = std::string(KIVI_SOURCE_DIR) + "/models/tales-llama";
  o.engine.device = "cpu";
  o.engine.kv_cache_memory_bytes = 32 << 20;
  o.text = std::string(KIVI_SOURCE_DIR) + "/tests/data/heldout_sample.txt";
  o.formats = {"fp16", "kivi2"};
  o.residuals = {32, 64};
  o.window = 96;
  o.windows = 2;
  o.divergence = true;
  o.results = folder.file("results.jsonl");
  return o;
}

// Runs, and counts the cells that were measured: each ends its progress with "".
std::vector<EvalFigures> run(const EvalOptions& o, int& measured) {
  measured = 0;
  auto cells =
      run_evaluation(o, [&](const std::string& news) { measured += news.empty() ? 1 : 0; });
  if (!cells.ok()) FAIL(cells.error().message);
  return std::move(cells).value();
}

}  // namespace

TEST_CASE("The grid is formats x G x R, and fp16 and fp8 stand in it once") {
  EvalOptions o;
  o.formats = {"fp16", "kivi2", "fp8"};
  o.groups = {32, 64};
  o.residuals = {64, 128};
  CHECK(grid_of(o) == std::vector<EvalCell>{{"fp16", 0, 0},
                                            {"kivi2", 32, 64},
                                            {"kivi2", 32, 128},
                                            {"kivi2", 64, 64},
                                            {"kivi2", 64, 128},
                                            {"fp8", 0, 0}});
}

TEST_CASE("Finished cells are not measured again, and others are") {
  const Folder folder;
  EvalOptions o = options_in(folder);
  int measured = 0;
  const auto first = run(o, measured);
  CHECK(measured == 3);
  REQUIRE(first.size() == 3);
  CHECK(first[0]["divergence"]["kl_mean"].get<double>() < 1e-6);
  CHECK(first[1]["format"] == "kivi2 G32 R32");
  CHECK(first[1]["divergence"]["kl_mean"].get<double>() > 1e-5);
  CHECK(first[1]["divergence"]["nll_change"].get<double>() > 1e-4);
  CHECK(first[1]["perplexity"]["tokens"] == 2 * 95);

  CHECK(run(o, measured) == first);
  CHECK(measured == 0);
  o.formats.emplace_back("kivi4");
  run(o, measured);
  CHECK(measured == 2);  // R 32 and 64
  o.windows = 1;         // another setting: nothing is known
  run(o, measured);
  CHECK(measured == 5);
}

TEST_CASE("An interrupted run's half line is dropped and its cell measured again") {
  const Folder folder;
  const EvalOptions o = options_in(folder);
  int measured = 0;
  const auto first = run(o, measured);
  const std::string all = read(o.results);
  std::ofstream(o.results, std::ios::trunc) << all.substr(0, all.size() - 20);
  const auto again = run(o, measured);
  CHECK(measured == 1);
  CHECK(again[2]["perplexity"] == first[2]["perplexity"]);
  run(o, measured);
  CHECK(measured == 0);
}

TEST_CASE("Results of another text or model are refused by line, as is what is no result") {
  const Folder folder;
  EvalOptions o = options_in(folder);
  o.formats = {"fp16"};
  int measured = 0;
  run(o, measured);
  const auto message = [](const EvalOptions& options) {
    const auto cells = run_evaluation(options, [](const std::string&) {});
    return cells.ok() ? "" : cells.error().message;
  };
  EvalOptions other = o;
  other.text = folder.file("text.txt");
  std::ofstream(other.text) << read(o.text) << "One more.";
  CHECK(message(other).find("line 1: was measured with another text") != std::string::npos);
  other = o;
  other.engine.model = std::string(KIVI_SOURCE_DIR) + "/models/tales-mistral";
  CHECK(message(other).find("line 1: was measured with another model") != std::string::npos);
  std::ofstream(o.results, std::ios::app) << "{\"a\": 1}\n";
  CHECK(message(o).find("line 2: is no result") != std::string::npos);
}

TEST_CASE("A copy of a model has its hash, and another byte another") {
  const Folder folder;
  fs::create_directories(folder.path / "a");
  fs::create_directories(folder.path / "b");
  for (const char* name : {"a/model", "b/model"}) std::ofstream(folder.file(name)) << "weights";
  const auto a = model_hash(folder.file("a"));
  REQUIRE(a.ok());
  CHECK(*a == *model_hash(folder.file("b")));
  std::ofstream(folder.file("b/model")) << "weighty";
  CHECK(*a != *model_hash(folder.file("b")));
  CHECK_FALSE(model_hash(folder.file("none")).ok());
}

TEST_CASE("A combination that the model cannot have is reported beside the others") {
  const Folder folder;
  EvalOptions o = options_in(folder);
  o.formats = {"kivi2"};
  o.groups = {64, 128};
  o.residuals = {128};
  o.divergence = false;
  int measured = 0;
  const auto cells = run(o, measured);
  CHECK(measured == 1);
  REQUIRE(cells.size() == 2);
  CHECK(cells[1].contains("refused"));
  const std::string table = eval_table(cells);
  CHECK(table.find("kivi2 G128 R128: refused: kivi_group_size is 128") != std::string::npos);
  CHECK(table.find("KL mean") == std::string::npos);  // a column that no cell has
  o.groups = {128};
  CHECK(run_evaluation(o, [](const std::string&) {}).error().field == "kivi_group_size");
}

TEST_CASE("Every figure that is asked for is there, in the JSON and in the table") {
  const Folder folder;
  EvalOptions o = options_in(folder);
  o.formats = {"fp16"};
  o.divergence = false;
  o.stride = o.window;  // then the two perplexities are one
  o.passkey = {.lengths = {64}, .depths = {0.5}, .trials = 1, .distractors = 1};
  o.choices = folder.file("choices.jsonl");
  std::ofstream(o.choices) << "{\"context\": \"The King said to the\", \"choices\": [\"of and\", "
                              "\"Princess\"], \"answer\": 1}\n";
  int measured = 0;
  const EvalFigures cell = run(o, measured).at(0);
  CHECK(cell["strided"]["tokens"] == cell["perplexity"]["tokens"]);
  CHECK(cell["strided"]["nll"].get<double>() ==
        Approx(cell["perplexity"]["nll"].get<double>()).epsilon(1e-6));
  CHECK(cell["passkey"][0]["length"] == 64);
  CHECK(cell["passkey"][0].contains("rank_mean"));
  CHECK(cell["choices"]["accuracy"] == 1.0);
  const std::string table = eval_table({cell});
  for (const char* title : {"strided", "key found", "likeliest", "acc norm"})
    CHECK(table.find(title) != std::string::npos);
  // Other tasks in a file of the same name are other figures.
  std::ofstream(o.choices) << "{\"context\": \"The King said to the\", \"choices\": [\"of and\", "
                              "\"Princess\"], \"answer\": 0}\n";
  CHECK(run(o, measured).at(0)["choices"]["accuracy"] == 0.0);
  CHECK(measured == 1);
}

TEST_CASE("Logits that do not fit the bytes for the reference are refused with both numbers") {
  const Folder folder;
  EvalOptions o = options_in(folder);
  o.reference_bytes = 1000;
  const auto cells = run_evaluation(o, [](const std::string&) {});
  REQUIRE_FALSE(cells.ok());
  CHECK(cells.error().field == "reference-bytes");
  CHECK(cells.error().message.find("keeps 3112960 bytes") != std::string::npos);  // 190 x 4096 x 4
}

}  // namespace kivi
