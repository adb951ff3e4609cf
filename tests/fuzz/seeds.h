// SPDX-License-Identifier: Apache-2.0
// A small valid file of each kind, from which mutations and fuzzing start.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace kivi::fuzz {

// Of a target of targets.h; several where the kind has several forms.
std::vector<std::string> seeds_of(std::string_view target);

}  // namespace kivi::fuzz
