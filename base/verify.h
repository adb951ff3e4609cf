// SPDX-License-Identifier: Apache-2.0
// KIVI_VERIFY stops the process if we made a mistake, and prints file, line and text. User input
// must never be able to fail one. The condition changes nothing: what must succeed is called
// before. (Catch2 owns the name CHECK.)
#pragma once

#include <cstdio>
#include <cstdlib>

namespace kivi {

[[noreturn]] inline void verify_failed(const char* file, int line, const char* text) {
  std::fprintf(stderr, "%s:%d: KIVI_VERIFY failed: %s\n", file, line, text);
  std::fflush(stderr);
  std::abort();
}

}  // namespace kivi

#define KIVI_VERIFY(condition)                                               \
  do {                                                                       \
    if (!(condition)) ::kivi::verify_failed(__FILE__, __LINE__, #condition); \
  } while (0)
