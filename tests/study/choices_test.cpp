// SPDX-License-Identifier: Apache-2.0
// Multiple-choice tasks: what a file may hold, and which choice wins.
#include "study/choices.h"

#include <catch2/catch.hpp>
#include <fstream>

#include "tests/model/temporary_folder.h"
#include "tests/study/scoring_model.h"

namespace kivi {

namespace {

std::string file_of(const std::string& lines) {
  static const TemporaryFolder folder;
  folder.write("choices.jsonl", lines);
  return folder.path() + "/choices.jsonl";
}

std::string error_of(const std::string& lines) {
  const auto tasks = read_choices(file_of(lines));
  return tasks.ok() ? "" : tasks.error().message;
}

}  // namespace

TEST_CASE("A line is a context or question, choices, and the answer's index or text") {
  const auto tasks = read_choices(
      file_of("{\"context\": \"a\", \"choices\": [\"b\", \"c\"], \"answer\": 1}\n  \n"
              "{\"question\": \"d\", \"choices\": [\"e\", \"f\", \"g\"], \"answer\": \"e\", "
              "\"source\": 3}\n"));
  REQUIRE(tasks.ok());
  REQUIRE(tasks->size() == 2);
  CHECK((*tasks)[0].context == "a");
  CHECK((*tasks)[0].choices == std::vector<std::string>{"b", "c"});
  CHECK((*tasks)[0].answer == 1);
  CHECK((*tasks)[0].line == 1);
  CHECK((*tasks)[1].line == 3);
  CHECK((*tasks)[1].context == "d");
  CHECK((*tasks)[1].choices.size() == 3);
  CHECK((*tasks)[1].answer == 0);
}

TEST_CASE("What is wrong with a file of tasks is named by line and field") {
  const std::string good = "{\"context\": \"a\", \"choices\": [\"b\", \"c\"], \"answer\": 1}\n";
  struct Case {
    std::string line, field, value;
  };
  const std::vector<Case> cases = {
      {"nonsense", "the line", "not one"},
      {"[1]", "the line", "not one"},
      {R"({"choices": ["b", "c"], "answer": 1})", "context", "missing"},
      {R"({"context": "", "choices": ["b", "c"], "answer": 1})", "context", "\"\""},
      {R"({"question": 5, "choices": ["b", "c"], "answer": 1})", "question", "5"},
      {R"({"context": "a", "answer": 1})", "choices", "missing"},
      {R"({"context": "a", "choices": ["b"], "answer": 0})", "choices", "[\"b\"]"},
      {R"({"context": "a", "choices": ["b", ""], "answer": 0})", "choices", "\"\""},
      {R"({"context": "a", "choices": ["b", "c"]})", "answer", "missing"},
      {R"({"context": "a", "choices": ["b", "c"], "answer": 2})", "answer", "2"},
      {R"({"context": "a", "choices": ["b", "c"], "answer": -1})", "answer", "-1"},
      {R"({"context": "a", "choices": ["b", "c"], "answer": "d"})", "answer", "\"d\""}};
  for (const Case& c : cases) {
    const std::string message = error_of(good + "\n" + c.line + "\n" + good);
    CAPTURE(c.line, message);
    CHECK(message.find(", line 3: " + c.field + " is " + c.value + ", must be ") !=
          std::string::npos);
  }
  CHECK(error_of("\n\n").find("holds no task") != std::string::npos);
  CHECK(read_choices("no such file").error().code == ErrorCode::not_found);
}

TEST_CASE("The largest score wins, of equal ones the first") {
  CHECK(best_choice({-3, -1, -2}) == 1);
  CHECK(best_choice({-1, -1}) == 0);
}

TEST_CASE("A continuation is what the whole has beyond the context's tokens") {
  const auto tokenizer = load_tokenizer(std::string(KIVI_SOURCE_DIR) + "/models/tales-llama");
  REQUIRE(tokenizer.ok());
  const Tokenizer& t = **tokenizer;
  for (const std::string context : {"Once upon a time", "Once upon a time "}) {
    const std::string rest = context.back() == ' ' ? "there was" : " there was";
    const auto c = continuation_of(t, context, rest);
    REQUIRE(c.ok());
    CHECK(c->prompt[0] == *t.bos_id());
    CHECK(c->context_tokens == 1 + int(t.encode("Once upon a time", false).size()));
    const std::vector<int32_t> whole = t.encode("Once upon a time there was", false);
    CHECK(std::equal(whole.begin(), whole.end(), c->prompt.begin() + 1, c->prompt.end()));
  }
  CHECK_FALSE(continuation_of(t, "Once", "").ok());
}

TEST_CASE("A model finds the continuation that a tale has likelier than one of noise") {
  const auto model = scoring_model("fp16", 64);
  Engine& engine = *model->engine;
  const Tokenizer& tokenizer = *model->tokenizer;
  std::vector<ChoiceTask> tasks = {
      {"Once upon a time there was a", {"little girl", "quantized girl"}, 0},
      {"The King said to the", {"of and", "Princess"}, 1},
      {"She opened the door and went into the", {"house", "because"}, 0}};
  const auto measure = [&](const std::vector<ChoiceTask>& of) {
    const auto continuations = choice_continuations(tokenizer, of, "file", 2048);
    REQUIRE(continuations.ok());
    return measure_choices(engine, of, *continuations);
  };
  const auto right = measure(tasks);
  REQUIRE(right.ok());
  CHECK(right->tasks == 3);
  CHECK(right->accuracy == 1);
  tasks[1].answer = 0;  // what the file says is right decides, not the model
  CHECK(measure(tasks)->accuracy == Approx(2.0 / 3));

  // A long choice has the smaller sum, and may have the larger mean.
  const std::vector<ChoiceTask> lengths = {
      {"Once upon a time", {" there was a little girl who had a little brother", " in"}, 0}};
  const auto by_length = measure(lengths);
  REQUIRE(by_length.ok());
  CHECK(by_length->accuracy_normalized == 1);
  CHECK(by_length->accuracy == 0);
}

}  // namespace kivi
