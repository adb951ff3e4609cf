// The first steps of a device load its code, choose its matrix products and record its graphs: they
// are made before anybody waits for them.
#pragma once

#include "engine/step_runner.h"

namespace kivi {

// A short prompt and two decode steps of one sequence, in the store's first page and slot, whose
// contents mean nothing before and after. Only before an engine uses the runner. `rows_max`: tokens
// that a step and the context hold, at least 1.
Status run_first_steps(StepRunner& runner, int rows_max);

}  // namespace kivi
