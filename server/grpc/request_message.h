// SPDX-License-Identifier: Apache-2.0
// RequestMessage is the request message of a call: first the bytes that have arrived, then what is
// parsed of them. Both count among --max-body-bytes-in-flight.
#pragma once

#include <google/protobuf/message.h>
#include <grpcpp/support/byte_buffer.h>

#include <cstddef>
#include <optional>
#include <string>

#include "server/body_budget.h"

namespace kivi {

// One thread at a time, in the order of the members.
class RequestMessage {
 public:
  enum class Parsed { whole, malformed, over_budget };

  // `message` must outlive this object.
  RequestMessage(google::protobuf::Message& message, BodyBudget& budget)
      : message_(message), share_(budget) {}

  // What the library reads into.
  grpc::ByteBuffer* incoming() { return &incoming_; }
  // After the read. Returns false, and keeps nothing, if the bytes exceed the budget.
  bool arrived();
  // Whether its bytes, which are there until parse(), are long work (long_work.h).
  bool is_long() const;
  // Fills in the message. Unless it is whole, the call has to end.
  Parsed parse();
  const google::protobuf::Message& message() const { return message_; }
  // Gives back what is held.
  void drop();

 private:
  google::protobuf::Message& message_;
  BodyShare share_;
  grpc::ByteBuffer incoming_;
  std::string bytes_;
};

// Returns how many bytes the parsed form of `bytes` takes at most. A message can be made to take 28
// times what it has on the wire. What is beyond `limit` is not counted. Nothing if the bytes cannot
// be parsed.
std::optional<size_t> parsed_bytes(const std::string& bytes,
                                   const google::protobuf::Descriptor& type, size_t limit);

}  // namespace kivi
