// SPDX-License-Identifier: Apache-2.0
// A small valid input of each kind, from which mutations and fuzzing start.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace kivi::fuzz {

// Of a target of targets.h; several where the kind has several forms.
std::vector<std::string> seeds_of(std::string_view target);
// The same for the targets that are requests and no files; empty for the others.
std::vector<std::string> request_seeds_of(std::string_view target);
// Words that a random mutation would hardly find; empty where mutations do without.
std::vector<std::string> dictionary_of(std::string_view target);

}  // namespace kivi::fuzz
