// SPDX-License-Identifier: Apache-2.0
// A bound on the bytes of one header block of HTTP/2, held before the gRPC library reads them.
//
// Why: version 1.51 takes a header value that goes on over many frames in quadratic time (32 MB
// cost 35 s of CPU), and no option of it bounds that. A header block is one HEADERS frame and the
// CONTINUATION frames that follow it, and no other frame may stand between them (RFC 9113, 6.10).
// So the heads of the frames, nine bytes each, are all that must be read to count a block.
//
// How: the library reads a connection by recvmsg(). The linker replaces this call in everything
// that is linked statically (--wrap), and header_limit.cpp follows the bytes that the call returns.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace kivi {

// What a client's header block may hold before it is decoded, with nine bytes for each frame. The
// library itself refuses more than 16 KiB of decoded headers.
constexpr uint64_t kHeaderBlockBytesMax = 64 << 10;

// Follows what a client sends on one connection, from its first byte.
class HeaderBlockCounter {
 public:
  // The next bytes. False: a header block is longer than kHeaderBlockBytesMax.
  bool take(std::span<const std::byte> bytes);

 private:
  bool begin_frame();

  uint64_t skip_ = 24;  // bytes to the head of the next frame; the preface comes first
  std::byte head_[9] = {};
  int head_bytes_ = 0;
  uint64_t block_bytes_ = 0;  // of the header block that has begun; 0: none has
};

// From now on, a header block on this socket that is too long ends the connection: its reader gets
// ECONNRESET. To be called before anything is read. Any thread.
void limit_header_blocks(int descriptor);

}  // namespace kivi
