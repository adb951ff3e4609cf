// SPDX-License-Identifier: Apache-2.0
// Multiple-choice tasks by log likelihood: which of several continuations of a context does the
// model find likeliest? Read from JSON lines.
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

// One JSON object a line, empty lines are skipped:
//   {"context": "...", "choices": ["...", "..."], "answer": 0}
// "question" may stand for "context"; "answer" is an index from 0 or the right choice's text.
// Errors (invalid; not_found) name the file, the line, the field, its value and what was expected.
Result<std::vector<ChoiceTask>> read_choices(const std::string& path);

struct ChoiceScores {
  int tasks = 0;
  double accuracy = 0;             // share whose right choice has the largest log probability
  double accuracy_normalized = 0;  // the same, log probability divided by the choice's bytes
};

// Index of the largest score; of equal ones the first.
int best_choice(const std::vector<double>& scores);

// A prompt for every choice of every task, in order. A space joins context and choice where neither
// has white space at the seam. Errors name `file`, which the tasks are of, and the task's line: an
// invalid continuation (continuation_of), and one of more than `tokens_max` tokens.
Result<std::vector<Continuation>> choice_continuations(const Tokenizer& tokenizer,
                                                       const std::vector<ChoiceTask>& tasks,
                                                       const std::string& file, int tokens_max);

// `continuations` are the tasks'.
Result<ChoiceScores> measure_choices(Engine& engine, const std::vector<ChoiceTask>& tasks,
                                     const std::vector<Continuation>& continuations,
                                     const ScoreProgress& progress = {});

}  // namespace kivi
