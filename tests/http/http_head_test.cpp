// SPDX-License-Identifier: Apache-2.0
// Where a head ends, and the chunked coding: for every split of their bytes.
#include "server/http/http_head.h"

#include <catch2/catch.hpp>

#include "engine/limits.h"
#include "server/http/chunked_body.h"

using namespace kivi;

namespace {

// The state after `text` has arrived, with a look after each byte.
HeadScanner::State scan_bytewise(std::string_view text) {
  HeadScanner scanner;
  for (size_t size = 1; size < text.size(); ++size)
    if (const auto state = scanner.scan(text.substr(0, size));
        state != HeadScanner::State::incomplete)
      return state;
  return scanner.scan(text);
}

struct Decoded {
  ChunkedBody::State state;
  std::string body, rest;
};

// `text` in two pieces, cut at `cut`.
Decoded decode(std::string_view text, size_t cut, size_t bytes_max = 1000) {
  ChunkedBody decoder(bytes_max);
  Decoded out{ChunkedBody::State::incomplete, "", ""};
  for (std::string_view piece : {text.substr(0, cut), text.substr(cut)}) {
    if (out.state == ChunkedBody::State::incomplete) out.state = decoder.read(piece, out.body);
    out.rest += piece;
  }
  return out;
}

}  // namespace

TEST_CASE("a head ends at its empty line, whatever follows") {
  const std::string head = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
  HeadScanner scanner;
  CHECK(scanner.scan(head + "GET") == HeadScanner::State::complete);
  CHECK(scanner.size() == head.size());
  CHECK(scan_bytewise(head) == HeadScanner::State::complete);
  CHECK(scan_bytewise(head.substr(0, head.size() - 1)) == HeadScanner::State::incomplete);
}

TEST_CASE("what no head may hold is refused as soon as it arrives") {
  for (const std::string head :
       {"GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n", "GET / HTTP/1.1\r\nA: b\r\n\tc\r\n\r\n",
        "GET / HTTP/1.1\r\n A: b\r\n\r\n", "GET / HTTP/1.1\n", "GET / HTTP/1.1\r\nA: b\n",
        "\x16\x03", " GET / HTTP/1.1\r\n"}) {
    INFO(head);
    CHECK(scan_bytewise(head) == HeadScanner::State::malformed);
    CHECK(HeadScanner().scan(head) == HeadScanner::State::malformed);
  }
  CHECK(scan_bytewise(std::string("GET /\0", 6)) == HeadScanner::State::malformed);
}

TEST_CASE("an absolute target has an authority and a path") {
  CHECK(split_target("/a?b").path == "/a");
  CHECK(split_target("/a?b").authority.empty());
  CHECK(split_target("HTTP://h:8/a#b").path == "/a");
  CHECK(split_target("http://h:8/a").authority == "h:8");
  CHECK(split_target("https://h").path == "/");
  CHECK(split_target("https://h?x").authority == "h");
  CHECK(split_target("/http://h/a").path == "/http://h/a");
}

TEST_CASE("a chunked body is the same for every split") {
  const std::string text = "5\r\nabcde\r\n00A;x=\"y\"\r\n0123456789\r\n0\r\nT: u\r\n\r\nNEXT";
  for (size_t cut = 0; cut <= text.size() - 4; ++cut) {
    const Decoded out = decode(text, cut);
    CHECK(out.state == ChunkedBody::State::complete);
    CHECK(out.body == "abcde0123456789");
    CHECK(out.rest == "NEXT");
  }
  for (size_t size = 0; size < text.size() - 4; ++size)
    CHECK(decode(std::string_view(text).substr(0, size), size / 2).state ==
          ChunkedBody::State::incomplete);
}

TEST_CASE("a broken chunk is malformed, a large body too large") {
  for (const char* text :
       {"0x10\r\n", "\r\n", "+5\r\n", "-1\r\n", "g\r\n", "5 5\r\n", "5\n", "5\rx", "1\r\nab",
        "1\r\na\n", "0000000000000001\r\n", "0\r\nA\n", "1;a\n"})
    CHECK(decode(text, 0).state == ChunkedBody::State::malformed);
  CHECK(decode("0\r\n" + std::string(100'000, 'a'), 0).state == ChunkedBody::State::malformed);
  CHECK(decode("1;" + std::string(100'000, 'a'), 0).state == ChunkedBody::State::malformed);
  CHECK(decode("3e8\r\n", 0).state == ChunkedBody::State::incomplete);
  CHECK(decode("3e9\r\n", 0).state == ChunkedBody::State::too_large);
  CHECK(decode("fffffffffffffff\r\n", 0).state == ChunkedBody::State::too_large);
  const std::string two = "3e8\r\n" + std::string(1000, 'a') + "\r\n1\r\n";
  CHECK(decode(two, 0).state == ChunkedBody::State::too_large);
}

TEST_CASE("blanks, extensions and trailers of a chunked body have a limit together") {
  struct Case {
    const char* begin;
    size_t counted;  // of its bytes: all but sizes and line feeds
    char more;
  };
  for (const Case& c : {Case{"1", 0, ' '}, Case{"1;", 1, 'a'}, Case{"0\r\nT", 2, 'a'}}) {
    const std::string at_limit = c.begin + std::string(kMaxHeaderBytes - c.counted, c.more);
    CHECK(decode(at_limit, 0).state == ChunkedBody::State::incomplete);
    CHECK(decode(at_limit + c.more, 0).state == ChunkedBody::State::malformed);
  }
}
