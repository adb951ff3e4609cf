// SPDX-License-Identifier: Apache-2.0
// 10,000 broken GGUF files, all the way from the bytes to the weights: none crashes, hangs, leads
// out of the file, or makes us allocate more than a bound that its size gives.
#include <fmt/format.h>

#include <catch2/catch.hpp>
#include <cstring>
#include <random>

#include "engine/model/files/gguf.h"
#include "kernels/backend.h"
#include "tests/heap_use.h"
#include "tests/model/small_gguf.h"

namespace kivi {

namespace {

// Bytes, lengths and whole stretches are changed, four times out of five before the tensors' bytes.
std::string mutated(std::string bytes, size_t header_bytes, std::mt19937& random) {
  for (auto n = 1 + random() % 3; n > 0; --n) {
    const size_t room = random() % 5 == 0 ? bytes.size() : std::min(header_bytes, bytes.size());
    const size_t at = random() % room;
    const size_t length = std::min<size_t>(1 + random() % 24, bytes.size() - at);
    constexpr uint64_t kNumbers[] = {
        0, 1, 7, 255, 65536, INT32_MAX, 1u << 31, UINT32_MAX, INT64_MAX, 1ull << 63, UINT64_MAX};
    const uint64_t number = kNumbers[random() % std::size(kNumbers)];
    switch (random() % 6) {
      case 0:
        bytes[at] = char(bytes[at] ^ 1 << random() % 8);
        break;
      case 1:
        bytes[at] = char(random());
        break;
      case 2:
        std::memcpy(&bytes[at], &number, std::min<size_t>({length, 4 + random() % 5, 8}));
        break;
      case 3:
        bytes.erase(at, length);
        break;
      case 4:
        bytes.insert(at, bytes.substr(random() % room, length));
        break;
      default:
        if (random() % 4 == 0) bytes.resize(at);
    }
    if (bytes.empty()) bytes = "G";
  }
  return bytes;
}

}  // namespace

TEST_CASE("10,000 mutated GGUF files never crash, hang or allocate beyond 1 MiB and 64 n bytes") {
  const bool bpe = GENERATE(true, false);
  const unsigned seed = bpe ? 20261124 : 20261125;
  CAPTURE(seed);
  std::mt19937 random(seed);
  const GgufWriter writer = bpe ? small_gguf_bpe() : small_gguf_sentencepiece();
  const std::string good = writer.bytes();
  const auto backend = make_cpu_backend(1);
  REQUIRE(read_gguf_file(good, *backend) == 2);
  int reached[3] = {};
  for (int i = 0; i < 5000; ++i) {
    const std::string bytes = mutated(good, writer.header_bytes(), random);
    const int64_t before = heap_bytes;
    heap_peak = before;
    ++reached[read_gguf_file(bytes, *backend)];
    CAPTURE(i, bytes.size());
    REQUIRE(heap_peak - before < (1 << 20) + 64 * int64_t(bytes.size()));
    REQUIRE(heap_bytes - before < 4096);  // nothing stays (the library's caches aside)
  }
  // The mutations reach every stage.
  CHECK(reached[0] > 500);
  CHECK(reached[1] > 500);
  CHECK(reached[2] > 100);
}

TEST_CASE("Parsing a GGUF file allocates at most 16 n bytes and 64 KiB") {
  GgufWriter many;  // as many keys and tensors as its size can hold
  for (int i = 0; i < 20'000; ++i) many.pair(fmt::format("{:x}", i), 0, "x");
  for (int i = 0; i < 20'000; ++i) many.tensor_at(fmt::format("{:x}", i), 0, {1}, 0);
  const std::string bytes = many.bytes() + std::string(32, '\0');
  const int64_t before = heap_bytes;
  heap_peak = before;
  const auto header =
      GgufHeader::parse(reinterpret_cast<const std::byte*>(bytes.data()), bytes.size(), "x.gguf");
  REQUIRE(header.ok());
  CHECK(header->tensors().size() == 20'000);
  CHECK(heap_peak - before < (64 << 10) + 16 * int64_t(bytes.size()));
}

}  // namespace kivi
