// SPDX-License-Identifier: Apache-2.0
// Streams of Random (random.h): one a purpose. Bits 40 and up are for a run of a sweep.
#pragma once

#include <cstdint>

namespace kivi::load {

inline constexpr uint64_t kArrivalStream = 1;
inline constexpr uint64_t kLengthStream = 2;
inline constexpr uint64_t kCancelStream = 3;
inline constexpr uint64_t kPrefixChoiceStream = 4;
inline constexpr uint64_t kShareGptStream = 5;
inline constexpr uint64_t kPrefixStream = 1ull << 32;  // + the prefix's index
inline constexpr uint64_t kPromptStream = 2ull << 32;  // + the request's index

}  // namespace kivi::load
