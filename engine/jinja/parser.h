// SPDX-License-Identifier: Apache-2.0
// From a template's text to its tree.
#pragma once

#include <string_view>

#include "engine/jinja/ast.h"

namespace kivi::jinja {

// Fails with the line at fault; what Jinja has and this does not is named (Failure::unsupported).
Template parse_template(std::string_view source);

}  // namespace kivi::jinja
