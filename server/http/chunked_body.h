// SPDX-License-Identifier: Apache-2.0
// ChunkedBody decodes the chunked transfer coding (RFC 9112, 7.1), piece by piece.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace kivi {

class ChunkedBody {
 public:
  enum class State { incomplete, complete, malformed, too_large };

  // `bytes_max` limits the decoded body.
  explicit ChunkedBody(size_t bytes_max) : bytes_max_(bytes_max) {}

  // Appends the decoded beginning of `bytes` to `body` and removes it from `bytes`. After
  // `incomplete`, all bytes were taken. After any other state, do not call it again.
  State read(std::string_view& bytes, std::string& body);

 private:
  enum class Part {
    size,
    blank,
    size_end,
    extension,
    data,
    data_cr,
    data_lf,
    trailer,
    trailer_end
  };

  State take(char c);

  const size_t bytes_max_;
  Part part_ = Part::size;
  uint64_t size_ = 0;      // of the current chunk; in `data`: what is left of it
  int digits_ = 0;         // of the size
  size_t decoded_ = 0;     // bytes of finished chunks and the current one
  size_t ignored_ = 0;     // bytes of extensions and trailers
  size_t line_bytes_ = 0;  // of the current trailer line
};

}  // namespace kivi
