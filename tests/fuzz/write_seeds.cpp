// SPDX-License-Identifier: Apache-2.0
// fuzz_seeds FOLDER: writes a seed corpus, a folder for each target.
#include <cstdio>
#include <filesystem>
#include <fstream>

#include "tests/fuzz/seeds.h"
#include "tests/fuzz/targets.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: fuzz_seeds FOLDER\n");
    return 2;
  }
  for (const kivi::fuzz::Target& target : kivi::fuzz::kTargets) {
    const auto folder = std::filesystem::path(argv[1]) / target.name;
    std::filesystem::create_directories(folder);
    int count = 0;
    for (const std::string& seed : kivi::fuzz::seeds_of(target.name))
      std::ofstream(folder / std::to_string(count++), std::ios::binary) << seed;
  }
  return 0;
}
