// SPDX-License-Identifier: Apache-2.0
// libFuzzer's entry for one target, which the build chooses (KIVI_FUZZ_TARGET).
#include <cstddef>
#include <cstdint>

#include "tests/fuzz/targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  kivi::fuzz::KIVI_FUZZ_TARGET({reinterpret_cast<const char*>(data), size});
  return 0;
}
