// SPDX-License-Identifier: Apache-2.0
// Where the sources were when this program was built.
#pragma once

namespace kivi::testing {

const char* source_folder();  // absolute

}  // namespace kivi::testing
