// SPDX-License-Identifier: Apache-2.0
// The only file that is compiled with an absolute path, so that ccache shares all others.
#include "tests/source_folder.h"

const char* kivi::testing::source_folder() { return KIVI_SOURCE_FOLDER; }
