// SPDX-License-Identifier: Apache-2.0
#include "server/http/chunked_body.h"

#include <algorithm>

#include "base/hex.h"
#include "engine/limits.h"

namespace kivi {
ChunkedBody::State ChunkedBody::read(std::string_view& bytes, std::string& body) {
  while (!bytes.empty()) {
    if (part_ == Part::data) {
      const size_t count = size_t(std::min<uint64_t>(size_, bytes.size()));
      body.append(bytes.substr(0, count));
      bytes.remove_prefix(count);
      size_ -= count;
      if (size_ == 0) part_ = Part::data_cr;
      continue;
    }
    const char c = bytes.front();
    bytes.remove_prefix(1);
    if (const State state = take(c); state != State::incomplete) return state;
  }
  return State::incomplete;
}

// One byte outside a chunk's data.
ChunkedBody::State ChunkedBody::take(char c) {
  constexpr int kMaxDigits = 15;  // 60 bits
  switch (part_) {
    case Part::size:
      if (const int digit = hex_digit(c); digit >= 0) {
        if (++digits_ > kMaxDigits) return State::malformed;
        size_ = size_ * 16 + uint64_t(digit);
        return State::incomplete;
      }
      if (digits_ == 0) return State::malformed;
      [[fallthrough]];
    case Part::blank:
      if (++ignored_ > kMaxHeaderBytes) return State::malformed;
      if (c == ';')
        part_ = Part::extension;
      else if (c == ' ' || c == '\t')
        part_ = Part::blank;
      else if (c == '\r')
        part_ = Part::size_end;
      else
        return State::malformed;
      return State::incomplete;
    case Part::extension:
      if (++ignored_ > kMaxHeaderBytes || c == '\n' || c == 0) return State::malformed;
      if (c == '\r') part_ = Part::size_end;
      return State::incomplete;
    case Part::size_end:
      if (c != '\n') return State::malformed;
      if (size_ > bytes_max_ - decoded_) return State::too_large;
      decoded_ += size_t(size_);
      part_ = size_ == 0 ? Part::trailer : Part::data;
      digits_ = 0;
      return State::incomplete;
    case Part::data_cr:
      part_ = Part::data_lf;
      return c == '\r' ? State::incomplete : State::malformed;
    case Part::data_lf:
      part_ = Part::size;
      return c == '\n' ? State::incomplete : State::malformed;
    case Part::trailer:
      if (++ignored_ > kMaxHeaderBytes || c == '\n' || c == 0) return State::malformed;
      if (c == '\r')
        part_ = Part::trailer_end;
      else
        ++line_bytes_;
      return State::incomplete;
    case Part::trailer_end:
      if (c != '\n') return State::malformed;
      if (line_bytes_ == 0) return State::complete;
      line_bytes_ = 0;
      part_ = Part::trailer;
      return State::incomplete;
    case Part::data:
      break;
  }
  return State::malformed;
}

}  // namespace kivi
