// SPDX-License-Identifier: Apache-2.0
// Expressions over bytes, of which the rules of a grammar are made. Immutable; parts are shared.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace kivi::grammar {

struct Automaton;   // automaton.h
struct Expression;  // null stands for the expression that matches nothing at all
using Expr = std::shared_ptr<const Expression>;

// An item of a listing. An item that is not required may be left out.
struct ListItem {
  Expr expression;
  bool required = true;
};

struct Expression {
  enum class Kind { bytes, byte_range, sequence, choice, repeat, call, automaton, listing };
  Kind kind = Kind::bytes;
  int depth = 1;                               // one more than its deepest part; a call has 1
  std::string bytes;                           // bytes: this text
  uint8_t first = 0, last = 0;                 // byte_range: one byte, both ends belong to it
  std::vector<Expr> parts;                     // sequence, choice; repeat: the one that repeats
  int least = 0, most = 0;                     // repeat; most -1: without end
  int rule = -1;                               // call
  std::shared_ptr<const Automaton> automaton;  // automaton: what it accepts
  // listing: the items in their order, those that are there separated by `separator`, and then
  // any number of `more` (may be null).
  std::vector<ListItem> items;
  Expr separator, more;
};

// The deepest expression that can be made. What walks through one recurses once for each level.
inline constexpr int kExpressionDepthMax = 2000;

Expr text(std::string bytes);
Expr byte_range(uint8_t first, uint8_t last);
Expr sequence(std::vector<Expr> parts);
Expr choice(std::vector<Expr> parts);  // null parts are left out; null if none is left
Expr repeat(Expr part, int least, int most);
Expr optional(Expr part);
Expr call(int rule);
Expr automaton(std::shared_ptr<const Automaton> automaton);
Expr listing(std::vector<ListItem> items, Expr separator, Expr more);

// Code points, both ends belong to the range.
struct CharRange {
  uint32_t first, last;
};
using CharRanges = std::vector<CharRange>;

inline constexpr uint32_t kLastChar = 0x10FFFF;
// Sorted, joined, without surrogates.
CharRanges normalized(CharRanges ranges);
CharRanges complement(const CharRanges& ranges);
CharRanges intersection(const CharRanges& a, const CharRanges& b);
// One character of `ranges` in UTF-8; null for none.
Expr utf8(const CharRanges& ranges);

// What is wrong with a grammar. Thrown inside engine/grammar, caught by compile().
struct Failure {
  std::string message;
};
[[noreturn]] void fail(std::string message);

}  // namespace kivi::grammar
