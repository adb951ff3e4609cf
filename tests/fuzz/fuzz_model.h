// SPDX-License-Identifier: Apache-2.0
// A served model without weights, for targets that carry a request to its end.
#pragma once

#include "engine/serving/completion.h"

namespace kivi::fuzz {

// An engine that invents tokens, a small tokenizer, a chat template, and a context of 64 tokens.
// Made at the first call, and kept until the process ends. Any thread.
const ServedModel& fuzz_model();

}  // namespace kivi::fuzz
