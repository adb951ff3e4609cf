// SPDX-License-Identifier: Apache-2.0
#include "bench/page_copies.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <vector>

namespace kivi {

Result<PageCopyTimes> time_page_copies(Backend& backend, KernelTimer& timer, int64_t page_bytes,
                                       int64_t bytes) {
  PageCopyTimes times;
  times.pages = int(std::max<int64_t>(1, bytes / page_bytes));
  times.bytes = times.pages * page_bytes;
  KIVI_ASSIGN_OR_RETURN(const Buffer device, backend.allocate(size_t(times.bytes), "pages"));
  KIVI_ASSIGN_OR_RETURN(const HostMemory host, backend.allocate_host(size_t(times.bytes)));
  std::memset(host.get(), 1, size_t(times.bytes));
  backend.upload(device.data(), host.get(), size_t(times.bytes));
  const auto time = [&](bool to_host) {
    std::vector<HostCopy> copies;
    for (int i = 0; i < times.pages; ++i) {
      // The places on both sides go in opposite directions, as pages lie anywhere.
      std::byte* const on_device = device.data() + i * page_bytes;
      std::byte* const on_host = host.get() + (times.pages - 1 - i) * page_bytes;
      if (to_host)
        copies.push_back({on_host, on_device, size_t(page_bytes)});
      else
        copies.push_back({on_device, on_host, size_t(page_bytes)});
    }
    return timer.seconds_unrecorded([&](int calls) {
      for (int i = 0; i < calls; ++i) backend.wait_beside(backend.copy_beside(copies));
    });
  };
  times.to_host = time(true);
  times.to_device = time(false);
  backend.synchronize();
  return times;
}

}  // namespace kivi
