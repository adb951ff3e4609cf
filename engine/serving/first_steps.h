// SPDX-License-Identifier: Apache-2.0
// The first steps on a device load its code, choose its matrix products and record its graphs. We
// run them before the first request arrives.
#pragma once

#include "engine/step_runner.h"

namespace kivi {

// Runs a short prompt and two decode steps of one sequence. It uses the store's first page and
// slot, whose contents mean nothing before and after. Call it before an engine uses the runner.
// `rows_max` is the number of tokens that a step and the context can hold, at least 1.
Status run_first_steps(StepRunner& runner, int rows_max);

}  // namespace kivi
