// SPDX-License-Identifier: Apache-2.0
#include "engine/grammar/work_limit.h"

#include <limits>

#include "engine/grammar/expression.h"

namespace kivi::grammar {
namespace {

constexpr int64_t kMaxWork = 20'000'000;
thread_local int64_t work_left = std::numeric_limits<int64_t>::max();

}  // namespace

WorkLimit::WorkLimit() { work_left = kMaxWork; }
WorkLimit::~WorkLimit() { work_left = std::numeric_limits<int64_t>::max(); }

void spend(int64_t work) {
  if ((work_left -= work) < 0)
    fail("it takes too long to compile: lower its bounds of lengths and counts, or simplify it");
}

}  // namespace kivi::grammar
