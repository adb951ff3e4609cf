// SPDX-License-Identifier: Apache-2.0
// The formats of JSON Schema that we can write.
#pragma once

#include <string>
#include <string_view>

namespace kivi::grammar {

// A regular expression of the whole text; empty for a format that is not known.
std::string format_pattern(std::string_view format);
// Their names, for an error.
std::string format_names();

}  // namespace kivi::grammar
