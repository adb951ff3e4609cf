// SPDX-License-Identifier: Apache-2.0
// What the arguments of all kernels that read or write the cache have in common.
#pragma once

#include "kernels/kv_place.h"
#include "kernels/step_view.h"

namespace kivi::cuda {

// The sequences of a step, and the store that holds their keys and values.
struct CacheArguments {
  KvView store;
  const StepSequence* sequences = nullptr;  // device
  const int32_t* page_table = nullptr;      // device, of all sequences

  KIVI_HOST_DEVICE KvLocator locator(const StepSequence& sequence, int layer, int head) const {
    return {store, sequence, page_table, layer, head};
  }
};

inline CacheArguments cache_arguments(const KvView& store, const StepView& step) {
  return {.store = store,
          .sequences = reinterpret_cast<const StepSequence*>(step.device_sequences.data),
          .page_table = step.device_page_table.as<int32_t>()};
}

}  // namespace kivi::cuda
