// SPDX-License-Identifier: Apache-2.0
// Times the copies of whole pages between a device and the host's memory as the host tier makes
// them (Backend::copy_beside, one copy for each page).
#pragma once

#include <cstdint>

#include "bench/kernel_timer.h"
#include "kernels/backend.h"

namespace kivi {

struct PageCopyTimes {
  int pages = 0;         // of a batch
  int64_t bytes = 0;     // of a batch, in one direction
  double to_host = 0;    // seconds of a batch
  double to_device = 0;  // seconds of a batch
};

// Copies batches of about `bytes` bytes in pieces of `page_bytes`. Errors: resource_exhausted if
// the device or the host has too little memory.
Result<PageCopyTimes> time_page_copies(Backend& backend, KernelTimer& timer, int64_t page_bytes,
                                       int64_t bytes);

}  // namespace kivi
