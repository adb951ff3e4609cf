// SPDX-License-Identifier: Apache-2.0
#include "server/http/http_head.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/beast/http/field.hpp>
#include <vector>

#include "server/json_writer.h"

namespace kivi {
namespace {

namespace http = boost::beast::http;

// RFC 9110, 5.6.2.
bool is_token_character(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
         (c != 0 && std::string_view("!#$%&'*+-.^_`|~").find(c) != std::string_view::npos);
}

std::string_view view_of(boost::beast::string_view text) { return {text.data(), text.size()}; }

std::string_view trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t") - begin + 1);
}

// Beast's own iequals reads a byte behind texts that differ in case.
bool equal_but_for_case(std::string_view a, std::string_view b) {
  const auto lower = [](char c) { return c >= 'A' && c <= 'Z' ? char(c - 'A' + 'a') : c; };
  return std::ranges::equal(a, b, {}, lower, lower);
}

std::string in_quotes(std::string_view text) {
  std::string out;
  append_json_string(out, text.substr(0, 100));
  return out;
}

ApiError malformed(std::string message) { return {kMalformedRequest, std::move(message)}; }

// The codings of all Transfer-Encoding fields, in their order.
std::vector<std::string_view> transfer_codings(const http::request_header<>& head) {
  std::vector<std::string_view> codings;
  const auto [begin, end] = head.equal_range(http::field::transfer_encoding);
  for (auto field = begin; field != end; ++field) {
    std::string_view rest = view_of(field->value());
    for (;;) {
      const size_t comma = rest.find(',');
      codings.push_back(trimmed(rest.substr(0, comma)));
      if (comma == std::string_view::npos) break;
      rest.remove_prefix(comma + 1);
    }
  }
  return codings;
}

std::optional<ApiError> judge_codings(const http::request_header<>& head) {
  const std::vector<std::string_view> codings = transfer_codings(head);
  if (codings.empty()) return std::nullopt;
  if (head.version() < 11)
    return malformed("Transfer-Encoding is not allowed in HTTP/1.0, send Content-Length");
  const auto is_chunked = [](std::string_view coding) {
    return equal_but_for_case(coding, "chunked");
  };
  for (size_t i = 0; i + 1 < codings.size(); ++i) {
    if (is_chunked(codings[i]))
      return malformed("Transfer-Encoding names chunked before its last coding");
    return ApiError{kNotImplemented,
                    fmt::format("Transfer-Encoding has the coding {}, must be chunked alone",
                                in_quotes(codings[i]))};
  }
  if (!is_chunked(codings.back()))
    return malformed(fmt::format("Transfer-Encoding ends in the coding {}, must be chunked",
                                 in_quotes(codings.back())));
  return std::nullopt;
}

}  // namespace

HeadScanner::State HeadScanner::scan(std::string_view bytes) {
  if (at_ == 0 && !bytes.empty() && !is_token_character(bytes[0]))
    return fail("the first byte is not a method's");
  for (; at_ < bytes.size(); ++at_) {
    const char c = bytes[at_];
    if (c == 0) return fail("the head has a NUL byte");
    if (at_ == line_begin_ && at_ > 0 && (c == ' ' || c == '\t'))
      return fail("a header line begins with a blank (folded lines are not allowed)");
    if (c != '\n') continue;
    if (at_ == line_begin_ || bytes[at_ - 1] != '\r')
      return fail("a line ends without a carriage return");
    const bool empty = at_ == line_begin_ + 1;
    line_begin_ = at_ + 1;
    if (empty) {
      ++at_;
      return State::complete;
    }
  }
  return State::incomplete;
}

std::optional<ApiError> judge_head(const http::request_header<>& head) {
  if (auto error = judge_codings(head)) return error;
  const size_t hosts = head.count(http::field::host);
  if (hosts > 1) return malformed(fmt::format("Host stands {} times, must stand once", hosts));
  if (hosts == 0 && head.version() >= 11) return malformed("Host is missing, must stand once");
  const auto [begin, end] = head.equal_range(http::field::expect);
  if (head.version() < 11) return std::nullopt;  // HTTP/1.0 has no expectations
  for (auto field = begin; field != end; ++field)
    if (!equal_but_for_case(view_of(field->value()), "100-continue"))
      return ApiError{kExpectationFailed,
                      fmt::format("Expect is {}, must be 100-continue or absent",
                                  in_quotes(view_of(field->value())))};
  return std::nullopt;
}

Target split_target(std::string_view target) {
  Target split;
  for (const std::string_view scheme : {"http://", "https://"}) {
    if (!equal_but_for_case(target.substr(0, scheme.size()), scheme)) continue;
    target.remove_prefix(scheme.size());
    split.authority = target.substr(0, target.find_first_of("/?#"));
    target.remove_prefix(split.authority.size());
    if (target.empty() || target[0] != '/') target = "/";
    break;
  }
  split.path = target.substr(0, target.find_first_of("?#"));
  return split;
}

}  // namespace kivi
