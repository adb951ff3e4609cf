// SPDX-License-Identifier: Apache-2.0
// The main function of every test program.
#include <filesystem>
#include <system_error>

#define CATCH_CONFIG_RUNNER
#include <catch2/catch.hpp>

#include "tests/source_folder.h"

int main(int argc, char** argv) {
  // Tests name their files relative to the sources. A program that runs on another machine than it
  // was built on finds them if it starts in a copy of that folder.
  std::error_code absent;
  std::filesystem::current_path(kivi::testing::source_folder(), absent);
  return Catch::Session().run(argc, argv);
}
