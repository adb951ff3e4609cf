// SPDX-License-Identifier: Apache-2.0
// Uploads of every size arrive, in order with what follows; copies and marks tell the truth.
#include <algorithm>
#include <chrono>
#include <cstring>

#include "tests/cuda/pair.h"

using namespace kivi;
using namespace kivi::test;

namespace {

std::vector<std::byte> random_bytes(size_t count, uint64_t seed) {
  std::vector<std::byte> bytes(count);
  std::mt19937_64 random(seed);
  for (size_t i = 0; i < count; i += 8) {
    const uint64_t x = random();
    std::memcpy(bytes.data() + i, &x, std::min<size_t>(8, count - i));
  }
  return bytes;
}

}  // namespace

TEST_CASE(
    "What the GPU has no memory for is an error that says how much of what, and costs nothing") {
  constexpr size_t kTooMuch = size_t(1) << 50;
  for (int i = 0; i < 3; ++i) {
    const auto refused = gpu().allocate(kTooMuch, "the key-value store");
    REQUIRE(!refused.ok());
    CHECK(refused.error().code == ErrorCode::resource_exhausted);
    CHECK(refused.error().message.find(
              "no memory for the key-value store (1125899906842624 bytes)") != std::string::npos);
    // The failed call leaves no error behind for the next one.
    auto buffer = gpu().allocate(4096, "test");
    REQUIRE(buffer.ok());
    const std::vector<std::byte> sent = random_bytes(4096, 7);
    std::vector<std::byte> came(4096);
    gpu().upload(buffer->data(), sent.data(), sent.size());
    gpu().download(came.data(), buffer->data(), came.size());
    CHECK(came == sent);
  }
}

TEST_CASE("Uploads of awkward sizes arrive byte for byte, many of them without waiting") {
  constexpr size_t kMiB = 1 << 20;
  const size_t sizes[] = {1,
                          3,
                          4 * kMiB - 1,
                          4 * kMiB,
                          4 * kMiB + 1,
                          12 * kMiB - 1,
                          12 * kMiB,
                          12 * kMiB + 1,
                          67 * kMiB + 5,
                          130 * kMiB + 17};
  for (const size_t size : sizes) {
    INFO(size << " bytes");
    auto buffer = gpu().allocate(size + 512, "test");
    REQUIRE(buffer.ok());
    gpu().fill_zero(buffer->data(), buffer->bytes());
    std::vector<std::byte> source = random_bytes(size, size);
    const std::vector<std::byte> kept = source;
    gpu().upload(buffer->data() + 256, source.data(), size);
    std::fill(source.begin(), source.end(), std::byte{0});  // it has been read
    std::vector<std::byte> got(buffer->bytes());
    gpu().download(got.data(), buffer->data(), got.size());
    CHECK(std::memcmp(got.data() + 256, kept.data(), size) == 0);
    for (size_t i = 0; i < 256; ++i)
      REQUIRE((got[i] == std::byte{0} && got[got.size() - 1 - i] == std::byte{0}));
  }
}

TEST_CASE("Large and small uploads in turn do not overtake each other's staging memory") {
  constexpr size_t kLarge = (40 << 20) + 3, kSmall = 1 << 20;
  auto buffer = gpu().allocate(8 * (kLarge + kSmall), "test");
  REQUIRE(buffer.ok());
  std::vector<std::byte> expected;
  size_t at = 0;
  for (int i = 0; i < 8; ++i) {
    const auto large = random_bytes(kLarge, uint64_t(2 * i)),
               small = random_bytes(kSmall, 2 * i + 1);
    gpu().upload(buffer->data() + at, large.data(), kLarge);
    gpu().upload(buffer->data() + at + kLarge, small.data(), kSmall);
    at += kLarge + kSmall;
    expected.insert(expected.end(), large.begin(), large.end());
    expected.insert(expected.end(), small.begin(), small.end());
  }
  std::vector<std::byte> got(expected.size());
  gpu().download(got.data(), buffer->data(), got.size());
  CHECK(got == expected);
}

TEST_CASE("copy moves bytes within the device") {
  const auto bytes = random_bytes(1 << 20, 4);
  auto buffer = gpu().allocate(2 << 20, "test");
  REQUIRE(buffer.ok());
  gpu().upload(buffer->data(), bytes.data(), bytes.size());
  gpu().copy(buffer->data() + (1 << 20), buffer->data(), bytes.size());
  std::vector<std::byte> got(bytes.size());
  gpu().download(got.data(), buffer->data() + (1 << 20), got.size());
  CHECK(got == bytes);
}

TEST_CASE("Copies beside the ops see the ops before them, and hold back ops that wait for them") {
  constexpr size_t kBytes = size_t(64) << 20;
  auto store = gpu().allocate(3 * kBytes, "test");
  REQUIRE(store.ok());
  std::byte *const a = store->data(), *const b = a + kBytes, *const busy = b + kBytes;
  auto host = gpu().allocate_host(2 * kBytes);
  REQUIRE(host.ok());
  const auto first = random_bytes(kBytes, 5), second = random_bytes(kBytes, 6);
  gpu().upload(b, second.data(), kBytes);
  std::memcpy(host->get() + kBytes, first.data(), kBytes);
  uint64_t batch = 0;
  for (int round = 0; round < 20; ++round) {
    INFO("round " << round);
    gpu().upload(a, first.data(), kBytes);
    for (int i = 0; i < 10; ++i) gpu().copy(busy, b, kBytes);  // the ops are behind
    gpu().copy(a, b, kBytes);
    // `a` has the second bytes when the copy begins, and gets the first ones when it is done.
    const HostCopy out{host->get(), a, kBytes}, in{b, host->get() + kBytes, kBytes};
    const uint64_t number = gpu().copy_beside({&out, 1});
    CHECK(number == ++batch);
    gpu().wait_beside(number);
    gpu().fill_zero(a, kBytes);
    const uint64_t back = gpu().copy_beside({&in, 1});
    CHECK(back == ++batch);
    while (gpu().copied_beside() < back) {
    }
    CHECK(std::memcmp(host->get(), second.data(), kBytes) == 0);
    std::vector<std::byte> got(kBytes);
    gpu().download(got.data(), b, kBytes);
    CHECK(got == first);
    gpu().download(got.data(), a, kBytes);
    CHECK(std::ranges::all_of(got, [](std::byte byte) { return byte == std::byte{0}; }));
    gpu().upload(b, second.data(), kBytes);
  }
  gpu().synchronize();
  CHECK(gpu().copied_beside() == batch);
}

TEST_CASE("Marks are in the order of the work, and no longer apart than the host waited") {
  auto buffer = gpu().allocate(size_t(1) << 30, "test");
  REQUIRE(buffer.ok());
  const auto work = [&](int copies) {
    for (int i = 0; i < copies; ++i)
      gpu().copy(buffer->data(), buffer->data() + (size_t(1) << 29), size_t(1) << 29);
  };
  work(1);
  gpu().synchronize();
  const auto begin = std::chrono::steady_clock::now();
  gpu().mark(0);
  work(1);
  gpu().mark(7);
  work(10);
  gpu().mark(3);
  const double one = gpu().seconds_between(0, 7), all = gpu().seconds_between(0, 3);
  const std::chrono::duration<double> host = std::chrono::steady_clock::now() - begin;
  CHECK(one > 0);
  CHECK(all > 5 * one);
  CHECK(all <= host.count());
}
