// SPDX-License-Identifier: Apache-2.0
// UTF-8: whole characters out of bytes, for every split, against an independent reading of the
// rules that knows well-formed characters only as a list.
#include "base/utf8.h"

#include <catch2/catch.hpp>
#include <random>
#include <set>

#include "tests/text/texts.h"

using namespace kivi;

namespace {

std::string encode(char32_t c) {
  std::string s;
  if (c < 0x80) {
    s += char(c);
  } else if (c < 0x800) {
    s += {char(0xC0 | c >> 6), char(0x80 | (c & 63))};
  } else if (c < 0x10000) {
    s += {char(0xE0 | c >> 12), char(0x80 | (c >> 6 & 63)), char(0x80 | (c & 63))};
  } else {
    s += {char(0xF0 | c >> 18), char(0x80 | (c >> 12 & 63)), char(0x80 | (c >> 6 & 63)),
          char(0x80 | (c & 63))};
  }
  return s;
}

// Every character, and every proper beginning of one.
struct Characters {
  std::set<std::string> whole, beginnings;
  Characters() {
    for (char32_t c = 0; c <= 0x10FFFF; ++c) {
      if (c >= 0xD800 && c < 0xE000) continue;
      // Of the many with the same beginning, a few are enough to know it: the last byte is free.
      const std::string s = encode(c);
      if (s.size() < 4 || c % 64 == 0) {
        for (size_t n = 1; n < s.size(); ++n) beginnings.insert(s.substr(0, n));
      }
      if (s.size() < 4) whole.insert(s);
    }
  }
  bool is_whole(const std::string& s) const {
    if (s.size() < 4) return whole.contains(s);
    return s.size() == 4 && beginnings.contains(s.substr(0, 3)) && (s[3] & 0xC0) == 0x80;
  }
};

const Characters& characters() {
  static const Characters all;
  return all;
}

std::string reference(const std::string& bytes) {
  std::string out;
  for (size_t i = 0; i < bytes.size();) {
    size_t longest = 0;
    bool whole = false;
    for (size_t n = 1; n <= 4 && i + n <= bytes.size() && !whole; ++n) {
      const std::string part = bytes.substr(i, n);
      whole = characters().is_whole(part);
      if (whole || characters().beginnings.contains(part)) longest = n;
    }
    out += whole ? bytes.substr(i, longest) : std::string(kReplacementCharacter);
    i += std::max<size_t>(longest, 1);
  }
  return out;
}

std::string through_stream(const std::string& bytes, const std::vector<size_t>& cuts) {
  Utf8Stream stream;
  std::string out;
  size_t begin = 0;
  for (size_t cut : cuts) {
    stream.append(std::string_view(bytes).substr(begin, cut - begin), out);
    REQUIRE(is_valid_utf8(out));
    begin = cut;
  }
  stream.append(std::string_view(bytes).substr(begin), out);
  REQUIRE(is_valid_utf8(out));
  stream.flush(out);
  REQUIRE(!stream.holding());
  return out;
}

}  // namespace

TEST_CASE("valid UTF-8 is exactly the characters, whole") {
  for (char32_t c = 0; c <= 0x10FFFF + 0x1000; c += c < 0x11000 ? 1 : 7) {
    const std::string s = encode(c);
    const bool exists = c <= 0x10FFFF && !(c >= 0xD800 && c < 0xE000);
    if (is_valid_utf8(s) != exists) FAIL("U+" << std::hex << uint32_t(c));
    if (!exists) continue;
    std::string appended = "ab";
    append_utf8(appended, c);
    if (appended != "ab" + s) FAIL(uint32_t(c));
    if (is_valid_utf8("plain text " + s + " and more plain text") != exists) FAIL(uint32_t(c));
    if (utf8_length("ab" + s) != 3) FAIL(uint32_t(c));
    for (size_t n = 1; n < s.size(); ++n) {
      if (is_valid_utf8(s.substr(0, n)) || is_valid_utf8(s.substr(n))) FAIL(uint32_t(c));
    }
  }
  for (const char* overlong : {"\xC0\x80", "\xC1\xBF", "\xE0\x80\x80", "\xE0\x9F\xBF",
                               "\xF0\x80\x80\x80", "\xF0\x8F\xBF\xBF", "\xF5\x80\x80\x80"}) {
    CHECK(!is_valid_utf8(overlong));
  }
}

TEST_CASE("a text in UTF-8 comes out of the stream as it is, for every split in two and bytewise") {
  for (const std::string& text : testing::awkward_texts()) {
    std::vector<size_t> every;
    for (size_t cut = 0; cut <= text.size(); ++cut) {
      REQUIRE(through_stream(text, {cut}) == text);
      every.push_back(cut);
    }
    REQUIRE(through_stream(text, every) == text);
  }
}

TEST_CASE("random bytes give what the list of characters says, for every split in three") {
  const unsigned seed = 20240611;
  INFO("seed " << seed);
  std::mt19937 random(seed);
  // Bytes at the borders of the rules are likelier than others.
  const unsigned char borders[] = {0x00, 0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0,
                                   0xBF, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1, 0xED, 0xEE,
                                   0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xFF};
  for (int round = 0; round < 2000; ++round) {
    std::string bytes;
    for (size_t n = random() % 12; n > 0; --n) {
      bytes += char(random() % 3 ? borders[random() % sizeof borders] : random() % 256);
    }
    const std::string expected = reference(bytes);
    for (size_t a = 0; a <= bytes.size(); ++a) {
      for (size_t b = a; b <= bytes.size(); ++b) {
        if (through_stream(bytes, {a, b}) != expected) FAIL("round " << round);
      }
    }
  }
}

TEST_CASE("the stream holds back no more than the start of one character") {
  Utf8Stream stream;
  std::string out;
  stream.append("a\xF0\x9F\x91", out);
  CHECK(out == "a");
  CHECK(stream.holding());
  stream.append(
      "\x8D"
      "b",
      out);
  CHECK(out ==
        "a\xF0\x9F\x91\x8D"
        "b");
  CHECK(!stream.holding());
}
