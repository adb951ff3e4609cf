// SPDX-License-Identifier: Apache-2.0
// The messages of the gRPC contract as one kind of file: the first byte chooses the message, and
// the rest is what a client sends of it.
#pragma once

#include <google/protobuf/message.h>

#include <memory>
#include <string_view>

namespace kivi::fuzz {

// Null where `bytes` are no such message.
std::unique_ptr<google::protobuf::Message> parse_grpc_message(std::string_view bytes);

}  // namespace kivi::fuzz
