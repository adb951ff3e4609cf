// SPDX-License-Identifier: Apache-2.0
// What of a request's head is judged by us and not by the parser: where it ends, and the demands of
// RFC 9110 and RFC 9112 whose neglect would let two readers of the same bytes disagree.
#pragma once

#include <boost/beast/http/message.hpp>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

#include "server/api_error.h"

namespace kivi {

// Looks for the end of a head in bytes that arrive piece by piece. Refuses at once what no head may
// hold: a line without CR, a folded line (RFC 9112, 5.2), NUL, a first byte that is no method's.
class HeadScanner {
 public:
  enum class State { incomplete, complete, malformed };

  // `bytes`: the head's bytes so far, from its first one.
  State scan(std::string_view bytes);
  // After `complete`: bytes of the head, with its empty line.
  size_t size() const { return at_; }
  // After `malformed`: what is wrong.
  const char* reason() const { return reason_; }

 private:
  State fail(const char* reason) {
    reason_ = reason;
    return State::malformed;
  }

  size_t at_ = 0;          // bytes that have been looked at
  size_t line_begin_ = 0;  // of the line that `at_` is in
  const char* reason_ = "";
};

// The error of a head that is HTTP's syntax and must be refused nevertheless: transfer codings
// (RFC 9112, 6.1 and 6.3), Host (3.2), Expect (RFC 9110, 10.1.1). What follows it in the connection
// cannot be trusted.
std::optional<ApiError> judge_head(const boost::beast::http::request_header<>& head);

// A request target, in origin-form ("/path?query") or absolute-form ("http://host/path?query").
struct Target {
  std::string_view path;       // without query and fragment; not decoded
  std::string_view authority;  // of absolute-form, else ""
};
Target split_target(std::string_view target);

}  // namespace kivi
