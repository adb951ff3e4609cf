// SPDX-License-Identifier: Apache-2.0
// Which instruction sets the vector code is compiled for: AVX2 (the build's baseline on x86-64, see
// kernels/CMakeLists.txt) and AVX-512 (Highway's AVX3). Include before hwy/foreach_target.h.
#pragma once

#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL)
