// SPDX-License-Identifier: Apache-2.0
// MemoryTrim: gives memory that the process has freed back to the system. The C library keeps it
// otherwise: after a burst of calls, hundreds of megabytes would stay resident.
#pragma once

#include <thread>

namespace kivi {

// Works on a thread of its own until the destructor.
class MemoryTrim {
 public:
  MemoryTrim();

 private:
  std::jthread thread_;
};

}  // namespace kivi
