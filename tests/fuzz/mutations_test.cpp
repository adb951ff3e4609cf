// SPDX-License-Identifier: Apache-2.0
// Ten thousand seeded mutations of each kind of input: none crashes, hangs (a second of CPU time)
// or holds more than kBytesMax of heap at once.
#include <catch2/catch.hpp>
#include <cstdio>
#include <random>

#include "tests/cpu_time.h"
#include "tests/fuzz/seeds.h"
#include "tests/fuzz/targets.h"
#include "tests/heap_use.h"

namespace {

// Files here are at most 20 kB. What a file may cost beyond its own size: a table of ids that are
// up to 65,536 beyond the dense ones, of 72 bytes each, and what growing it needs.
constexpr int64_t kBytesMax = 32 << 20;
constexpr double kSecondsMax = 1;

}  // namespace

namespace kivi::fuzz {

namespace {

std::string mutated(std::string file, std::mt19937& random,
                    const std::vector<std::string>& dictionary) {
  static const std::string kPieces[] = {"null",
                                        "[]",
                                        "{}",
                                        "-1",
                                        "0",
                                        "1e308",
                                        "4294967296",
                                        "18446744073709551616",
                                        "true",
                                        "\"\"",
                                        std::string("\0", 1),
                                        "\xff\xff\xff\xff\xff\xff\xff\x7f",
                                        "[[[[[[[[",
                                        "\\ud800",
                                        "\xc0\x80",
                                        "9999999"};
  const auto below = [&](size_t n) { return size_t(random() % std::max<size_t>(n, 1)); };
  for (size_t rounds = 1 + (below(3) == 0 ? below(4) : 0); rounds > 0; --rounds) {
    const size_t at = below(file.size()), length = 1 + below(below(2) == 0 ? 4 : 64);
    const std::string& piece = !dictionary.empty() && below(2) == 0
                                   ? dictionary[below(dictionary.size())]
                                   : kPieces[below(std::size(kPieces))];
    switch (random() % 8) {
      case 0:
        if (!file.empty()) file[at] = char(file[at] ^ (1 << random() % 8));
        break;
      case 1:
        if (!file.empty()) file[at] = char(random());
        break;
      case 2:
        file.erase(at, length);
        break;
      case 3:
        file.insert(at, file.substr(below(file.size()), length));
        break;
      case 4:
        file.replace(at, std::min(length, file.size() - at), piece);
        break;
      case 5:
        file.resize(at);
        break;
      case 6: {  // a number becomes another value
        const size_t begin = file.find_first_of("0123456789", at);
        if (begin == file.npos) break;
        const size_t end = std::min(file.find_first_not_of("0123456789.", begin), file.size());
        file.replace(begin, end - begin, piece);
        break;
      }
      default: {  // a string changes places
        const size_t a = file.find('"', at), b = file.find('"', below(file.size()));
        if (a != file.npos && b != file.npos) std::swap(file[a], file[(b + 1) % file.size()]);
      }
    }
  }
  return file;
}

}  // namespace

// Each was a crash once.
TEST_CASE("inputs that fuzzing has found are refused") {
  const std::string piece_without_a_name(
      "\x0a\x0e\x0a\x05\x3c\x1e\x00\x6b\x3e\x15\x00\x00\x00\x00\x18"
      "\x02\x0a\x0c\x0a\x0a\x00\x00\x00\x00\x00\x00\x00\x0f\x3e\x15",
      30);
  CHECK_FALSE(read_tokenizer_model(piece_without_a_name));
}

TEST_CASE("ten thousand mutations of each kind of input neither crash, hang nor eat memory") {
  constexpr int kMutations = 10'000;
  for (const Target& target : kTargets) {
    if (target.mutated_elsewhere) continue;
    const auto seeds = seeds_of(target.name), dictionary = dictionary_of(target.name);
    CAPTURE(target.name);
    for (const std::string& seed : seeds) CHECK(target.read(seed));
    int64_t bytes_worst = 0;
    double seconds_worst = 0;
    int accepted = 0;
    for (int i = 0; i < kMutations; ++i) {
      std::mt19937 random{uint32_t(i)};
      const std::string& seed = seeds[size_t(i) % seeds.size()];
      const std::string file = target.mutate != nullptr && i % 2 == 1
                                   ? target.mutate(seed, random)
                                   : mutated(seed, random, dictionary);
      const double begin = cpu_seconds();
      const int64_t before = heap_bytes;
      heap_peak = before;
      accepted += target.read(file) ? 1 : 0;
      bytes_worst = std::max<int64_t>(bytes_worst, heap_peak - before);
      seconds_worst = std::max(seconds_worst, cpu_seconds() - begin);
      if (heap_peak - before > kBytesMax || cpu_seconds() - begin > kSecondsMax)
        FAIL(target.name << ", mutation " << i << ": " << heap_peak - before << " bytes, "
                         << cpu_seconds() - begin << " s");
    }
    std::printf("%-16.*s %5d of %d accepted, at most %.1f KiB and %.1f ms\n",
                int(target.name.size()), target.name.data(), accepted, kMutations,
                double(bytes_worst) / 1024, seconds_worst * 1e3);
    CHECK(bytes_worst > 0);
    CHECK(accepted > 0);  // what lies behind the checks is reached
    CHECK(accepted < kMutations);
  }
}

}  // namespace kivi::fuzz
