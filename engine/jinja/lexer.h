// SPDX-License-Identifier: Apache-2.0
// The lexer of templates: text and tags, white space control as Transformers sets it up
// (trim_blocks, lstrip_blocks), one trailing line break of the template dropped.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace kivi::jinja {

struct Token {
  enum class Kind {
    data,         // text between tags
    begin_print,  // {{
    end_print,
    begin_block,  // {%
    end_block,
    name,
    string,  // unescaped
    integer,
    number,
    symbol,  // an operator or bracket
    end,
  };
  Kind kind = Kind::end;
  int line = 1;
  std::string text;
  int64_t integer = 0;
  double number = 0;

  bool is_symbol(std::string_view wanted) const { return kind == Kind::symbol && text == wanted; }
  bool is_name(std::string_view wanted) const { return kind == Kind::name && text == wanted; }
};

// All tokens of a template; the last is `end`. Fails with the line at fault.
std::vector<Token> read_tokens(std::string_view source);

}  // namespace kivi::jinja
