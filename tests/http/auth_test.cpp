// SPDX-License-Identifier: Apache-2.0
// API keys and log lines: what both front ends share.
#include "server/auth.h"

#include <catch2/catch.hpp>

#include "server/logging.h"

namespace kivi {
namespace {

using Keys = std::vector<std::string>;

TEST_CASE("Only a whole key of the list is taken, whatever the scheme's case") {
  const ApiKeys keys({"sesame", "second-key"});
  CHECK_FALSE(keys.open());
  CHECK(keys.match("Bearer sesame") == key_id("sesame"));
  CHECK(keys.match("bEARER   second-key") == key_id("second-key"));
  for (const char* wrong : {"", "Bearer", "Bearer ", "Bearer sesam", "Bearer sesame ", "sesame",
                            "Basic sesame", "Bearer Sesame", "Bearer sesame,second-key"})
    CHECK_FALSE(keys.match(wrong).has_value());
}

TEST_CASE("Without keys everything is taken, as no key") {
  const ApiKeys keys({});
  CHECK(keys.open());
  CHECK(keys.match("") == kNoKey);
  CHECK(keys.match("Bearer anything") == kNoKey);
}

TEST_CASE("An id is the key's own: no key's is that of none, and a reload changes no id") {
  ApiKeys keys({"a", "b"});
  const auto before = keys.match("Bearer b");
  CHECK(before != keys.match("Bearer a"));
  CHECK(before != kNoKey);
  keys.replace({"c", "b"});
  CHECK(keys.match("Bearer b") == before);
  CHECK_FALSE(keys.match("Bearer a").has_value());
  CHECK(ApiKeys({"b"}).match("Bearer b") == before);
}

TEST_CASE("A file of keys may have a mark, carriage returns, blanks and empty lines") {
  CHECK(*parse_api_keys("\xEF\xBB\xBF one \r\n\n\ttwo\r\nthree", "f") ==
        Keys{"one", "two", "three"});
}

TEST_CASE("A text without keys is an error that names its source") {
  for (const char* text : {"", "\n\n", " \r\n", "\xEF\xBB\xBF\n"}) {
    const auto keys = parse_api_keys(text, "the source");
    REQUIRE_FALSE(keys.ok());
    CHECK(keys.error().message.starts_with("the source has no API key"));
  }
}

TEST_CASE("A key with white space or a control character inside is named by line, and not shown") {
  using namespace std::string_view_literals;
  for (const std::string_view text :
       {"ok\n\nse cret"sv, "ok\n\nse\tcret"sv, "ok\n\nse\0cret"sv, "ok\n\nse\x7f"sv}) {
    const auto keys = parse_api_keys(text, "f");
    REQUIRE_FALSE(keys.ok());
    CHECK(keys.error().message.starts_with("f, line 3: "));
    CHECK(keys.error().message.find("se") == std::string::npos);
  }
}

TEST_CASE("Loopback is what only this machine reaches") {
  for (const char* host : {"127.0.0.1", "127.9.9.9", "::1", "[::1]", "::ffff:127.0.0.1"})
    CHECK(is_loopback(host));
  for (const char* host : {"0.0.0.0", "::", "[::]", "", "10.0.0.1", "::ffff:10.0.0.1"})
    CHECK_FALSE(is_loopback(host));
}

TEST_CASE("An address that others reach needs a key or a word") {
  ServerConfig config;
  CHECK(check_access(config).ok());
  config.host = "0.0.0.0";
  REQUIRE_FALSE(check_access(config).ok());
  CHECK(check_access(config).error().field == "host");
  config.allow_open = true;
  CHECK(check_access(config).ok());
  config.allow_open = false;
  config.api_keys = {"k"};
  CHECK(check_access(config).ok());
}

TEST_CASE("A log message is one line without control characters") {
  CHECK(one_line("plain text, and h\xC3\xA9") == "plain text, and h\xC3\xA9");
  CHECK(one_line("a\nb\r\tc") == "a\\nb\\r\\tc");
  CHECK(one_line("\x1b[31m\x7f") == "\\x1b[31m\\x7f");
  CHECK(one_line("\xC2\x9B") == "\\x9b");  // CSI of 8-bit terminals
  CHECK(one_line("\xC2\xA0") == "\xC2\xA0");
  CHECK(one_line("\xFF\xC2") == "\xEF\xBF\xBD\xEF\xBF\xBD");
  const std::string line = one_line(std::string(10'000, 'x'));
  CHECK(line.size() < 8300);
  CHECK(line.ends_with("... (1808 more bytes)"));
}

}  // namespace
}  // namespace kivi
