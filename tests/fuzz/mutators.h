// SPDX-License-Identifier: Apache-2.0
// Mutations that keep the structure of what they change, so that more of them pass the parser and
// reach what lies behind it. For the seeded mutations and for libFuzzer alike.
#pragma once

#include <random>
#include <string>
#include <string_view>

namespace kivi::fuzz {

// Changes one value of a JSON text: another value, type or size, a field more or less, a level of
// nesting more. Returns what is no JSON as it is.
std::string mutate_json(std::string_view text, std::mt19937& random);

// Changes one field of what read_grpc_message() takes, by Protobuf's reflection. Returns bytes that
// are no message as they are.
std::string mutate_grpc_message(std::string_view bytes, std::mt19937& random);

}  // namespace kivi::fuzz
