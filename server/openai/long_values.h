// SPDX-License-Identifier: Apache-2.0
// Long values of a body: lists of token ids and texts, which are most of a long prompt's body. They
// are read here at about one byte a nanosecond. The JSON library takes five times as long, because
// it handles each character and each number by itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace kivi {

// A body without its long values. In their places stand an empty list or an empty text.
struct BodyOutline {
  struct List {
    size_t number;  // of the body's lists, in the order in which they begin
    std::vector<uint32_t> values;
  };
  struct Text {
    size_t number;  // of the body's strings, names among them
    std::string value;
  };
  std::string body;
  std::vector<List> lists;  // by number
  std::vector<Text> texts;  // by number
};

inline constexpr size_t kLongListValues = 256;
inline constexpr size_t kLongTextBytes = 4 << 10;

// Takes the long values out of a body. Nothing if it has none, or if one of them is not what JSON
// allows: then the body is for the library alone. The outline is JSON if, and only if, the body is.
// Takes time linear in the body's length.
std::optional<BodyOutline> outline_of(std::string_view body);

}  // namespace kivi
