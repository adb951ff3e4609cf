// SPDX-License-Identifier: Apache-2.0
// Multiple-choice tasks: which of several continuations of a context does the model find likeliest?
// The tasks are read from JSON lines.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/text/tokenizer.h"
#include "study/score.h"

namespace kivi {

struct ChoiceTask {
  std::string context;
  std::vector<std::string> choices;  // at least 2, none empty
  int answer = 0;                    // index of the right one
  int line = 0;                      // of the file, from 1
};

// Reads one JSON object from each line that is not empty:
//   {"context": "...", "choices": ["...", "..."], "answer": 0}
// "question" is another name for "context". "answer" is an index from 0, or the text of the right
// choice. Errors (invalid, not_found) name the file, the line, the field, its value and what was
// expected.
Result<std::vector<ChoiceTask>> read_choices(const std::string& path);

struct ChoiceScores {
  int tasks = 0;
  double accuracy = 0;             // share whose right choice has the largest log probability
  double accuracy_normalized = 0;  // the same, log probability divided by the choice's bytes
};

// Returns the index of the largest score, and of the first one if several are equal.
int best_choice(const std::vector<double>& scores);

// Makes a prompt for every choice of every task, in order. If neither context nor choice has white
// space at the seam, a space joins them. A continuation that is invalid (continuation_of) or longer
// than `tokens_max` tokens is an error, which names `file` and the line of the task.
Result<std::vector<Continuation>> choice_continuations(const Tokenizer& tokenizer,
                                                       const std::vector<ChoiceTask>& tasks,
                                                       const std::string& file, int tokens_max);

// `continuations` are the tasks'.
Result<ChoiceScores> measure_choices(Engine& engine, const std::vector<ChoiceTask>& tasks,
                                     const std::vector<Continuation>& continuations,
                                     const ScoreProgress& progress = {});

}  // namespace kivi
