// SPDX-License-Identifier: Apache-2.0
// The grid of `kivi eval`, its results file, and what it refuses.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "study/eval_report.h"
#include "study/eval_results.h"
#include "study/eval_run.h"
#include "tests/model/temporary_folder.h"

namespace kivi {

namespace {

namespace fs = std::filesystem;

struct Folder : TemporaryFolder {
  std::string file(const std::string& name) const { return path() + "/" + name; }
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
  CHECK(first[1]["divergence"]["kl_error"].get<double>() > 0);
  CHECK(first[1]["divergence"]["rise"].get<double>() ==
        Approx(first[1]["perplexity"]["nll"].get<double>() -
               first[0]["perplexity"]["nll"].get<double>()));
  CHECK(first[1]["divergence"]["rise_error"].get<double>() > 0);
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
  fs::create_directories(folder.file("a"));
  fs::create_directories(folder.file("b"));
  for (const char* name : {"a/model", "b/model"}) std::ofstream(folder.file(name)) << "weights";
  const auto a = model_hash(folder.file("a"));
  REQUIRE(a.ok());
  CHECK(*a == *model_hash(folder.file("b")));
  std::ofstream(folder.file("b/model")) << "weighty";
  CHECK(*a != *model_hash(folder.file("b")));
  CHECK_FALSE(model_hash(folder.file("none")).ok());

  // A tensor in the middle of a large file.
  std::string large(size_t(8) << 20, 'w');
  folder.write("large", large);
  const auto before = model_hash(folder.file("large"));
  std::fill_n(large.begin() + (4 << 20), 1 << 18, 'v');
  folder.write("large", large);
  CHECK(*before != *model_hash(folder.file("large")));
}

TEST_CASE("A file that is no results file is refused and left as it is") {
  const Folder folder;
  EvalOptions o = options_in(folder);
  struct Case {
    std::string bytes, line;
  };
  const std::vector<Case> cases = {{"a novel without a line's end", "line 1"},
                                   {"a line\nand a half", "line 1"},
                                   {"\n{\"model\":", "line 1"},
                                   {"{\"text\": \"x\"}", "line 1"}};
  for (const Case& c : cases) {
    folder.write("results.jsonl", c.bytes);
    const auto cells = run_evaluation(o, [](const std::string&) {});
    REQUIRE_FALSE(cells.ok());
    CHECK(cells.error().message.find(c.line + ": is no result of kivi eval") != std::string::npos);
    CHECK(read(o.results) == c.bytes);
  }
  // After whole results too; what begins like one is cut off.
  const auto opened = [&] { return EvalResults::open(o.results, "m", "t"); };
  const std::string whole = R"({"model":"m","text":"t","settings":{},"values":{}})"
                            "\n";
  folder.write("results.jsonl", whole + "notes");
  CHECK(opened().error().message.find("line 2: is no result") != std::string::npos);
  CHECK(read(o.results) == whole + "notes");
  for (const char* rest : {"{", "{\"model\":", "{\"model\":\"m\",\"te"}) {
    folder.write("results.jsonl", whole + rest);
    CHECK(opened().ok());
    CHECK(read(o.results) == whole);
  }
}

TEST_CASE("An infinite figure is shown after it was read back from the results file") {
  const Folder folder;
  const std::string file = folder.file("results.jsonl");
  const nlohmann::ordered_json settings = {{"format", "kivi2"}};
  const EvalFigures figures = {
      {"format", "kivi2 G32 R32"},
      {"bytes_per_token", 768.0},
      {"perplexity", {{"windows", 1}, {"tokens", 95}, {"nll", HUGE_VAL}, {"perplexity", HUGE_VAL}}},
      {"seconds", 1.0}};
  auto results = EvalResults::open(file, "m", "t");
  REQUIRE(results.ok());
  REQUIRE(results->add(settings, figures).ok());
  const auto again = EvalResults::open(file, "m", "t");
  REQUIRE(again.ok());
  const EvalFigures* known = again->find(settings);
  REQUIRE(known != nullptr);
  CHECK((*known)["perplexity"]["nll"].is_null());
  CHECK(eval_table({*known}) == eval_table({figures}));
  CHECK(eval_table({*known}).find(" inf ") != std::string::npos);
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

TEST_CASE("A model does the repository's cloze tasks well above chance, in every format",
          "[long]") {
  const Folder folder;
  EvalOptions o = options_in(folder);
  o.residuals = {32};
  o.divergence = false;
  o.windows = 1;
  o.choices = folder.file("tasks.jsonl");
  std::ifstream all(std::string(KIVI_SOURCE_DIR) + "/tools/data/cloze.jsonl");
  std::ofstream some(o.choices);
  std::string line;
  for (int i = 0; i < 4 && std::getline(all, line); ++i) some << line << "\n";
  some.close();
  int measured = 0;
  for (const EvalFigures& cell : run(o, measured)) {
    INFO(cell.dump());
    CHECK(cell["choices"]["tasks"] == 4);
    CHECK(cell["choices"]["accuracy"].get<double>() >= 0.5);  // chance: 0.25
  }
  CHECK(measured == 2);
}

TEST_CASE("A choice too long for the model is named by file and line, before anything is scored") {
  const Folder folder;
  EvalOptions o = options_in(folder);
  o.choices = folder.file("choices.jsonl");
  std::string words;
  for (int i = 0; i < 2048; ++i) words += " the";  // the model's context is 2048 tokens
  std::ofstream(o.choices) << "{\"context\": \"a\", \"choices\": [\"b\", \"c\"], \"answer\": 0}\n\n"
                              "{\"context\": \"a\", \"choices\": [\"b\", \"c"
                           << words << "\"], \"answer\": 0}\n";
  for (const bool divergence : {false, true}) {
    o.divergence = divergence;
    int news = 0;
    const auto cells = run_evaluation(o, [&](const std::string&) { ++news; });
    REQUIRE_FALSE(cells.ok());
    CHECK(cells.error().field == "choices");
    CHECK(cells.error().message.find(o.choices + ", line 3: a context and a choice have ") == 0);
    CHECK(news == 0);
  }
  o.choices.clear();
  o.passkey.lengths = {4096};
  CHECK(run_evaluation(o, [](const std::string&) {}).error().field == "passkey");
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
