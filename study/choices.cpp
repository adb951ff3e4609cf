// SPDX-License-Identifier: Apache-2.0
#include "study/choices.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <fstream>
#include <nlohmann/json.hpp>

namespace kivi {

namespace {

using nlohmann::json;

// What is wrong with a line.
Error wrong(const std::string& field, const std::string& value, const std::string& expected) {
  return Error{ErrorCode::invalid, fmt::format("{} is {}, must be {}", field, value, expected),
               field};
}

std::string shown(const json& object, const std::string& field) {
  return object.contains(field) ? object[field].dump() : "missing";
}

Result<std::string> context_of(const json& object) {
  const std::string field = object.contains("question") ? "question" : "context";
  if (!object.contains(field) || !object[field].is_string() || object[field] == "")
    return wrong(field, shown(object, field), "a text that is not empty");
  return object[field].get<std::string>();
}

Result<std::vector<std::string>> choices_of(const json& object) {
  constexpr const char* kExpected = "an array of at least 2 texts that are not empty";
  if (!object.contains("choices") || !object["choices"].is_array() || object["choices"].size() < 2)
    return wrong("choices", shown(object, "choices"), kExpected);
  std::vector<std::string> choices;
  for (const json& choice : object["choices"]) {
    if (!choice.is_string() || choice == "") return wrong("choices", choice.dump(), kExpected);
    choices.push_back(choice);
  }
  return choices;
}

Result<int> answer_of(const json& object, const std::vector<std::string>& choices) {
  if (object.contains("answer")) {
    const json& answer = object["answer"];
    if (answer.is_number_unsigned() && answer < choices.size()) return answer.get<int>();
    if (answer.is_string()) {
      const auto found = std::ranges::find(choices, answer.get<std::string>());
      if (found != choices.end()) return int(found - choices.begin());
    }
  }
  return wrong("answer", shown(object, "answer"),
               fmt::format("an index from 0 to {} or one of the choices", choices.size() - 1));
}

Result<ChoiceTask> task_of(const std::string& line) {
  const json object = json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return wrong("the line", "not one", "a JSON object");
  ChoiceTask task;
  KIVI_ASSIGN_OR_RETURN(task.context, context_of(object));
  KIVI_ASSIGN_OR_RETURN(task.choices, choices_of(object));
  KIVI_ASSIGN_OR_RETURN(task.answer, answer_of(object, task.choices));
  return task;
}

bool space(char c) { return std::isspace(uint8_t(c)) != 0; }

}  // namespace

Result<std::vector<ChoiceTask>> read_choices(const std::string& path) {
  std::ifstream file(path);
  if (!file)
    return Error{ErrorCode::not_found, fmt::format("--choices {}: cannot be read", path),
                 "choices"};
  std::vector<ChoiceTask> tasks;
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    if (std::ranges::all_of(line, space)) continue;
    Result<ChoiceTask> task = task_of(line);
    if (!task.ok())
      return Error{task.error().code,
                   fmt::format("{}, line {}: {}", path, number, task.error().message),
                   task.error().field};
    tasks.push_back(std::move(task).value());
    tasks.back().line = number;
  }
  if (tasks.empty())
    return Error{ErrorCode::invalid, fmt::format("{}: holds no task", path), "choices"};
  return tasks;
}

int best_choice(const std::vector<double>& scores) {
  return int(std::ranges::max_element(scores) - scores.begin());
}

Result<std::vector<Continuation>> choice_continuations(const Tokenizer& tokenizer,
                                                       const std::vector<ChoiceTask>& tasks,
                                                       const std::string& file, int tokens_max) {
  std::vector<Continuation> continuations;
  for (const ChoiceTask& task : tasks) {
    const auto refused = [&](ErrorCode code, const std::string& message) {
      return Error{code, fmt::format("{}, line {}: {}", file, task.line, message), "choices"};
    };
    for (const std::string& choice : task.choices) {
      const bool joined = space(task.context.back()) || space(choice.front());
      Result<Continuation> c =
          continuation_of(tokenizer, task.context, joined ? choice : " " + choice);
      if (!c.ok()) return refused(c.error().code, c.error().message);
      if (int64_t(c->prompt.size()) > tokens_max)
        return refused(ErrorCode::context_length,
                       fmt::format("a context and a choice have {} tokens, must have at most {} "
                                   "(max_model_len)",
                                   c->prompt.size(), tokens_max));
      continuations.push_back(std::move(c).value());
    }
  }
  return continuations;
}

Result<ChoiceScores> measure_choices(Engine& engine, const std::vector<ChoiceTask>& tasks,
                                     const std::vector<Continuation>& continuations,
                                     const ScoreProgress& progress) {
  KIVI_ASSIGN_OR_RETURN(const auto sums, score_continuations(engine, continuations, progress));
  ChoiceScores result;
  auto sum = sums.begin();
  for (const ChoiceTask& task : tasks) {
    std::vector<double> scores(sum, sum + std::ptrdiff_t(task.choices.size()));
    sum += std::ptrdiff_t(task.choices.size());
    result.accuracy += best_choice(scores) == task.answer ? 1 : 0;
    for (size_t i = 0; i < scores.size(); ++i) scores[i] /= double(task.choices[i].size());
    result.accuracy_normalized += best_choice(scores) == task.answer ? 1 : 0;
    ++result.tasks;
  }
  result.accuracy /= double(result.tasks);
  result.accuracy_normalized /= double(result.tasks);
  return result;
}

}  // namespace kivi
