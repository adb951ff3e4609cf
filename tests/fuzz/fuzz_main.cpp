// SPDX-License-Identifier: Apache-2.0
// libFuzzer's entries for one target, which the build names (KIVI_FUZZ_TARGET).
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/verify.h"
#include "tests/fuzz/targets.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t size_max);

namespace {

const kivi::fuzz::Target& target() {
  static const auto found =
      std::ranges::find(kivi::fuzz::kTargets, KIVI_FUZZ_TARGET, &kivi::fuzz::Target::name);
  KIVI_VERIFY(found != kivi::fuzz::kTargets.end());
  return *found;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  target().read({reinterpret_cast<const char*>(data), size});
  return 0;
}

// Half of the mutations are libFuzzer's own where the target has a mutator.
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t size_max,
                                          unsigned seed) {
  if (target().mutate == nullptr || seed % 2 == 0) return LLVMFuzzerMutate(data, size, size_max);
  std::mt19937 random{seed};
  const std::string changed = target().mutate({reinterpret_cast<const char*>(data), size}, random);
  if (changed.size() > size_max) return LLVMFuzzerMutate(data, size, size_max);
  std::memcpy(data, changed.data(), changed.size());
  return changed.size();
}
