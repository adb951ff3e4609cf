// SPDX-License-Identifier: Apache-2.0
// fuzz_seeds FOLDER: writes a seed corpus, a folder for each target, and TARGET.dict where the
// target has a dictionary.
#include <fmt/format.h>

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
    const auto words = kivi::fuzz::dictionary_of(target.name);
    if (words.empty()) continue;
    std::ofstream dictionary(folder.string() + ".dict");
    for (const std::string& word : words) {
      dictionary << '"';
      for (const char c : word)
        dictionary << fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
      dictionary << "\"\n";
    }
  }
  return 0;
}
