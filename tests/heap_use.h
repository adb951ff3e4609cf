// SPDX-License-Identifier: Apache-2.0
// Bytes of the heap in use, for tests of what something allocates. A program that links
// heap_use.cpp has its operator new and delete count.
#pragma once

#include <atomic>
#include <cstdint>

namespace kivi {

// Bytes from operator new (as malloc_usable_size says) in use now, and the most that there were;
// store the first into the second to begin anew.
extern std::atomic<int64_t> heap_bytes, heap_peak;

}  // namespace kivi
