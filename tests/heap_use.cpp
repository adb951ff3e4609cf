// SPDX-License-Identifier: Apache-2.0
#include "tests/heap_use.h"

#include <malloc.h>

#include <cstdlib>
#include <new>

namespace kivi {

std::atomic<int64_t> heap_bytes{0}, heap_peak{0};

namespace {

void* counted(size_t bytes) noexcept {
  void* data = std::malloc(bytes == 0 ? 1 : bytes);
  if (data == nullptr) return nullptr;
  const int64_t held = heap_bytes += int64_t(malloc_usable_size(data));
  if (held > heap_peak) heap_peak = held;
  return data;
}

void* counted_or_throw(size_t bytes) {
  void* data = counted(bytes);
  if (data == nullptr) throw std::bad_alloc();
  return data;
}

void uncounted(void* data) noexcept {
  if (data != nullptr) heap_bytes -= int64_t(malloc_usable_size(data));
  std::free(data);
}

}  // namespace

}  // namespace kivi

// All forms but the aligned ones, so that whatever one allocates another may free: AddressSanitizer
// has forms of its own for those that are not here, and takes a mixture for a mistake.
void* operator new(size_t bytes) { return kivi::counted_or_throw(bytes); }
void* operator new[](size_t bytes) { return kivi::counted_or_throw(bytes); }
void* operator new(size_t bytes, const std::nothrow_t&) noexcept { return kivi::counted(bytes); }
void* operator new[](size_t bytes, const std::nothrow_t&) noexcept { return kivi::counted(bytes); }
void operator delete(void* data) noexcept { kivi::uncounted(data); }
void operator delete[](void* data) noexcept { kivi::uncounted(data); }
void operator delete(void* data, size_t) noexcept { kivi::uncounted(data); }
void operator delete[](void* data, size_t) noexcept { kivi::uncounted(data); }
