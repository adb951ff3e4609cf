// SPDX-License-Identifier: Apache-2.0
// libFuzzer's entries. The variable KIVI_FUZZ_TARGET names the target: one program has all of them,
// because most of what is linked is the same.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "tests/fuzz/targets.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t size_max);

namespace {

const kivi::fuzz::Target& find_target() {
  const char* name = std::getenv("KIVI_FUZZ_TARGET");
  for (const kivi::fuzz::Target& target : kivi::fuzz::kTargets)
    if (name != nullptr && target.name == name) return target;
  std::string names;
  for (const kivi::fuzz::Target& target : kivi::fuzz::kTargets)
    names += " " + std::string(target.name);
  std::fprintf(stderr, "KIVI_FUZZ_TARGET is \"%s\", must be one of:%s\n",
               name == nullptr ? "" : name, names.c_str());
  std::exit(2);
}

const kivi::fuzz::Target& target() {
  static const kivi::fuzz::Target& found = find_target();
  return found;
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
