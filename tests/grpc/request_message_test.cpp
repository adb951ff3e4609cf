// SPDX-License-Identifier: Apache-2.0
// What a message counts for is at least what it takes when it is parsed.
#include "server/grpc/request_message.h"

#include <catch2/catch.hpp>
#include <string>
#include <vector>

#include "kivi/v1/kivi.pb.h"

using namespace kivi;

namespace {

constexpr size_t kNoLimit = size_t(1) << 40;

std::string repeated(const std::string& piece, int times) {
  std::string out;
  for (int i = 0; i < times; ++i) out += piece;
  return out;
}

template <class Message>
void check_bound(const std::string& bytes) {
  Message message;
  REQUIRE(message.ParseFromString(bytes));
  const auto bound = parsed_bytes(bytes, *Message::descriptor(), kNoLimit);
  REQUIRE(bound);
  CHECK(*bound + sizeof(message) >= message.SpaceUsedLong());
}

}  // namespace

TEST_CASE("a message counts for no less than what it takes when it is parsed") {
  check_bound<v1::EmbedRequest>("");
  check_bound<v1::EmbedRequest>(repeated(std::string("\x12\0", 2), 100'000));  // empty inputs
  check_bound<v1::EmbedRequest>(repeated("\x12\x03\x0a\x01x", 1'000));         // texts
  // Unknown fields: groups, numbers, and texts.
  for (const char* piece : {"\xbb\x3e\xbc\x3e", "\xb8\x3e\x01", "\xba\x3e\x02xy",
                            "\xbb\x3e\xbb\x3e\xb8\x3e\x01\xbc\x3e\xbc\x3e"})
    check_bound<v1::GetServerInfoRequest>(repeated(piece, 10'000));
  v1::DetokenizeRequest ids;
  for (int i = 0; i < 100'000; ++i) ids.add_token_ids(i % 5 == 0 ? -1 : 5);
  check_bound<v1::DetokenizeRequest>(ids.SerializeAsString());
  // Not a GenerateRequest: SpaceUsedLong() of its map crashes where the test is built for
  // ThreadSanitizer and the library is not.
  v1::StructuredOutput words;
  for (int i = 0; i < 10'000; ++i) words.mutable_choice()->add_texts("yes");
  check_bound<v1::StructuredOutput>(words.SerializeAsString());
  words.set_grammar(std::string(100'000, 'a'));
  check_bound<v1::StructuredOutput>(words.SerializeAsString());
}

TEST_CASE("a text counts for little more than its bytes") {
  v1::TokenizeRequest request;
  request.set_text(std::string(1'000'000, 'a'));
  const auto bound =
      parsed_bytes(request.SerializeAsString(), *v1::TokenizeRequest::descriptor(), kNoLimit);
  REQUIRE(bound);
  CHECK(*bound < 1'001'000);
}

TEST_CASE("what cannot be parsed is not counted, and much is not counted to its end") {
  const auto& type = *v1::EmbedRequest::descriptor();
  const std::string nested = repeated("\xbb\x3e", 1'000);  // groups in groups, without an end
  for (const std::string& bytes : {std::string("\xff\xff"), std::string("\x12\x05x"), nested,
                                   nested + repeated("\xbc\x3e", 1'000), std::string("\xbc\x3e")})
    CHECK_FALSE(parsed_bytes(bytes, type, kNoLimit));
  const std::string many = repeated(std::string("\x12\0", 2), 100'000);
  const auto counted = parsed_bytes(many, type, 1'000);
  REQUIRE(counted);
  CHECK(*counted > 1'000);
  CHECK(*counted < 2'000);
}

TEST_CASE("nothing is parsed of a message that ends by a fault") {
  BodyBudget budget(1 << 20);
  v1::EmbedRequest request;
  RequestMessage message(request, budget);
  const grpc::Slice bytes(repeated(std::string("\x12\0", 2), 1'000) + "\x12\x05x");
  *message.incoming() = grpc::ByteBuffer(&bytes, 1);
  REQUIRE(message.arrived());
  CHECK(message.parse() == RequestMessage::Parsed::malformed);
  CHECK(request.inputs_size() == 0);
}

TEST_CASE("a message takes its share as it arrives, and gives it back") {
  BodyBudget budget(3'000);
  v1::TokenizeRequest request;
  request.set_text(std::string(1'000, 'a'));
  const std::string bytes = request.SerializeAsString();
  const auto receive = [](RequestMessage& message, const std::string& from) {
    const grpc::Slice slice(from);
    *message.incoming() = grpc::ByteBuffer(&slice, 1);
    return message.arrived();
  };
  v1::TokenizeRequest first, second;
  RequestMessage one(first, budget), two(second, budget);
  REQUIRE(receive(one, bytes));
  CHECK(budget.used() == bytes.size());
  REQUIRE(one.parse() == RequestMessage::Parsed::whole);
  CHECK(first.text() == request.text());
  CHECK(budget.used() >= bytes.size());
  CHECK_FALSE(receive(two, bytes + bytes + bytes));  // more than what is left
  one.drop();
  CHECK(budget.used() == 0);
  CHECK(first.text().empty());
  REQUIRE(receive(two, std::string(2'000, '\xff')));
  CHECK(two.parse() == RequestMessage::Parsed::malformed);
  two.drop();
  REQUIRE(receive(two, repeated(std::string("\x18\x01", 2), 100)));
  CHECK(two.parse() == RequestMessage::Parsed::over_budget);
}
