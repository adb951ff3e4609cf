// SPDX-License-Identifier: Apache-2.0
// Python's strings, as far as templates use them: UTF-8 whose characters are code points.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace kivi::jinja {

// The code point at `at`, which moves behind it. `text` is valid UTF-8.
char32_t next_character(std::string_view text, size_t& at);

bool is_space(char32_t c);  // str.isspace of one character

enum class Side { both, left, right };
// str.strip: of white space, or of the characters of `characters`.
std::string_view strip(std::string_view text, Side side,
                       std::optional<std::string_view> characters = std::nullopt);

int64_t length(std::string_view text);  // characters
// Where character `index` (0..length) begins, bytes.
size_t byte_of(std::string_view text, int64_t index);

std::string upper(std::string_view text);
std::string lower(std::string_view text);
std::string capitalize(std::string_view text);
std::string title(std::string_view text);         // str.title
std::string title_filter(std::string_view text);  // Jinja's filter: words begin after - ( { [ <

enum class CharacterClass { digit, alpha, alnum, space, upper, lower };
// str.isdigit and its like.
bool all_are(std::string_view text, CharacterClass wanted);

// Where `what` is found at or after `from`, bytes; npos: nowhere. In linear time, whatever the
// texts.
size_t find_text(std::string_view text, std::string_view what, size_t from = 0);

// str.split / rsplit; separator none: runs of white space. limit < 0: none.
std::vector<std::string_view> split(std::string_view text,
                                    std::optional<std::string_view> separator, int64_t limit);
std::vector<std::string_view> rsplit(std::string_view text,
                                     std::optional<std::string_view> separator, int64_t limit);
std::vector<std::string_view> split_lines(std::string_view text, bool keep_ends);

// str.replace; count < 0: all. Nothing where the result would be longer than `bytes_max`.
std::optional<std::string> replace(std::string_view text, std::string_view from,
                                   std::string_view to, int64_t count, size_t bytes_max);

// repr of a string and of a float.
void append_quoted(std::string& out, std::string_view text);
std::string number_text(double value);

// A JSON string as json.dumps writes it.
void append_json_text(std::string& out, std::string_view text, bool ascii);

}  // namespace kivi::jinja
