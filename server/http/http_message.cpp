// SPDX-License-Identifier: Apache-2.0
#include "server/http/http_message.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <boost/beast/http/status.hpp>

#include "base/hex.h"
#include "base/version.h"

namespace kivi {
namespace {

void append_cors(std::string& out, const HttpRequest& request,
                 const std::vector<std::string>& allowed_origins) {
  if (allowed_origins.empty() || request.origin.empty()) return;
  const bool any = std::ranges::find(allowed_origins, "*") != allowed_origins.end();
  if (!any && std::ranges::find(allowed_origins, request.origin) == allowed_origins.end()) return;
  out += fmt::format(
      "Access-Control-Allow-Origin: {}\r\nVary: Origin\r\n"
      "Access-Control-Expose-Headers: X-Request-Id, Retry-After\r\n",
      any ? "*" : request.origin);
}

}  // namespace

std::string http_date(std::time_t seconds) {
  constexpr std::array kDays{"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
  constexpr std::array kMonths{"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                               "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
  std::tm t{};
  ::gmtime_r(&seconds, &t);
  return fmt::format("{}, {:02} {} {:04} {:02}:{:02}:{:02} GMT", kDays[size_t(t.tm_wday)],
                     t.tm_mday, kMonths[size_t(t.tm_mon)], t.tm_year + 1900, t.tm_hour, t.tm_min,
                     t.tm_sec);
}

HttpReply json_reply(std::string body) {
  HttpReply reply;
  reply.body = std::move(body);
  return reply;
}

HttpReply error_reply(const ApiError& error) {
  HttpReply reply = json_reply(error_json(error));
  reply.status = error.kind.http;
  reply.error = error;
  if (error.retry_after > 0)
    reply.headers.emplace_back("Retry-After", std::to_string(error.retry_after));
  if (!error.kind.should_retry) reply.headers.emplace_back("x-should-retry", "false");
  if (error.kind.http == 401) reply.headers.emplace_back("WWW-Authenticate", "Bearer");
  return reply;
}

HttpReply error_reply(const Error& error) { return error_reply(to_api_error(error)); }

std::string reply_head(const HttpRequest& request, const HttpReply& reply, std::string_view framing,
                       bool keep_alive, const std::vector<std::string>& allowed_origins) {
  const auto reason = boost::beast::http::obsolete_reason(
      boost::beast::http::int_to_status(static_cast<unsigned>(reply.status)));
  std::string out =
      fmt::format("HTTP/1.1 {} {}\r\nDate: {}\r\nServer: kivi/" KIVI_VERSION "\r\n", reply.status,
                  std::string_view(reason.data(), reason.size()), http_date(std::time(nullptr)));
  if (!reply.content_type.empty()) out += fmt::format("Content-Type: {}\r\n", reply.content_type);
  out += framing;
  for (const auto& [name, value] : reply.headers) out += fmt::format("{}: {}\r\n", name, value);
  if (!request.request_id.empty()) out += fmt::format("X-Request-Id: {}\r\n", request.request_id);
  if (!request.trace.span_id.empty())
    out += fmt::format("traceparent: {}\r\n", request.trace.header());
  append_cors(out, request, allowed_origins);
  // HTTP/1.0 clients have to be told of either.
  if (!keep_alive)
    out += "Connection: close\r\n";
  else if (!request.http_1_1)
    out += "Connection: keep-alive\r\n";
  out += "\r\n";
  return out;
}

std::string percent_decode(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size()) {
      const int high = hex_digit(text[i + 1]), low = hex_digit(text[i + 2]);
      if (high >= 0 && low >= 0) {
        out.push_back(char(high * 16 + low));
        i += 2;
        continue;
      }
    }
    out.push_back(text[i]);
  }
  return out;
}

}  // namespace kivi
