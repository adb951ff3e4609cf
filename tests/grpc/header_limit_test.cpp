// SPDX-License-Identifier: Apache-2.0
// The bytes of a header block of HTTP/2, counted from the heads of the frames.
#include "server/grpc/header_limit.h"

#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <string>

#include "catch2/catch.hpp"

using namespace kivi;

namespace {

constexpr int kData = 0, kHeaders = 1, kContinuation = 9, kEnd = 4;

std::string frame(int kind, int flags, size_t bytes) {
  std::string text{char(bytes >> 16), char(bytes >> 8), char(bytes), char(kind), char(flags)};
  return text + std::string(4 + bytes, '\1');
}

std::string preface() { return "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"; }

// Whether all of `text` is taken, in pieces of `piece` bytes.
bool taken(const std::string& text, size_t piece) {
  HeaderBlockCounter counter;
  for (size_t at = 0; at < text.size(); at += piece)
    if (!counter.take(
            std::as_bytes(std::span(text).subspan(at, std::min(piece, text.size() - at)))))
      return false;
  return true;
}

}  // namespace

TEST_CASE("a header block is counted over its frames, however the bytes arrive") {
  const size_t most = kHeaderBlockBytesMax - 3 * 9;
  const std::string begin = preface() + frame(kHeaders, 0, most / 2);
  const std::string full = begin + frame(kContinuation, 0, most - most / 2);
  const std::string data = frame(kData, 0, 3 * kHeaderBlockBytesMax);
  for (const size_t piece : {size_t(1), size_t(7), size_t(4'096), size_t(1) << 24}) {
    CAPTURE(piece);
    CHECK(taken(full + frame(kContinuation, kEnd, 0) + data + full, piece));
    CHECK_FALSE(taken(full + frame(kContinuation, kEnd, 1), piece));
    CHECK_FALSE(taken(preface() + frame(kHeaders, kEnd, kHeaderBlockBytesMax), piece));
    // A finished block does not count for the next one.
    CHECK(taken(full + frame(kContinuation, kEnd, 0) + full, piece));
  }
}

TEST_CASE("empty frames of a header block count too") {
  std::string text = preface() + frame(kHeaders, 0, 0);
  for (uint64_t i = 1; i < kHeaderBlockBytesMax / 9; ++i) text += frame(kContinuation, 0, 0);
  CHECK(taken(text, 100));
  CHECK_FALSE(taken(text + frame(kContinuation, 0, 0), 100));
}

TEST_CASE("a socket that is followed ends with its header block, another one does not") {
  for (const bool followed : {true, false}) {
    std::array<int, 2> pair{};
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair.data()) == 0);
    if (followed) limit_header_blocks(pair[0]);
    const std::string text = preface() + frame(kHeaders, 0, kHeaderBlockBytesMax);
    REQUIRE(write(pair[1], text.data(), 40) == 40);
    std::array<char, 64> buffer{};
    iovec part{buffer.data(), buffer.size()};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    if (followed) {
      CHECK(recvmsg(pair[0], &message, 0) == -1);
      CHECK(errno == ECONNRESET);
    } else {
      CHECK(recvmsg(pair[0], &message, 0) == 40);
    }
    for (const int end : pair) close(end);
  }
}
