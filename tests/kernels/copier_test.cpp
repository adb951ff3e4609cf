// SPDX-License-Identifier: Apache-2.0
// Copies beside the ops of the CPU backend: in order, and awaited by those who must.
#include <catch2/catch.hpp>
#include <chrono>
#include <cstring>
#include <thread>
#include <vector>

#include "kernels/cpu/cpu_backend.h"

using namespace kivi;

TEST_CASE("batches of copies run one after the other, and do not keep the caller waiting") {
  CpuBackend backend(1);
  backend.delay_copies(std::chrono::milliseconds(100));
  auto host = backend.allocate_host(300);
  REQUIRE(host.ok());
  auto device = backend.allocate(300, "test");
  REQUIRE(device.ok());
  std::memset(device->data(), 1, 300);
  std::memset(host->get(), 2, 300);
  const auto begin = std::chrono::steady_clock::now();
  // A byte goes to the host, from there to another place, and back to the host.
  const HostCopy out{host->get(), device->data(), 100};
  const HostCopy in{device->data() + 100, host->get(), 100};
  const HostCopy again{host->get() + 200, device->data() + 100, 100};
  CHECK(backend.copy_beside({&out, 1}) == 1);
  CHECK(backend.copy_beside({&in, 1}) == 2);
  CHECK(backend.copy_beside({&again, 1}) == 3);
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::milliseconds(90));
  CHECK(backend.copied_beside() == 0);
  CHECK(backend.seconds_beside() == 0);
  backend.wait_beside(2);
  CHECK(backend.copied_beside() >= 2);
  CHECK(device->data()[150] == std::byte{1});
  backend.synchronize();
  CHECK(backend.copied_beside() == 3);
  CHECK(backend.seconds_beside() >= 0.3);
  CHECK(host->get()[250] == std::byte{1});
  CHECK(host->get()[150] == std::byte{2});
  CHECK(std::chrono::steady_clock::now() - begin >= std::chrono::milliseconds(300));
}

TEST_CASE("a backend ends after the copies under way") {
  std::vector<std::byte> to(1000), from(1000, std::byte{3});
  {
    CpuBackend backend(1);
    backend.delay_copies(std::chrono::milliseconds(20));
    const HostCopy copy{to.data(), from.data(), from.size()};
    backend.copy_beside({&copy, 1});
  }
  CHECK(to == from);
}
