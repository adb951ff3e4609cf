// SPDX-License-Identifier: Apache-2.0
#include "engine/grammar/expression.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/utf8.h"

namespace kivi::grammar {
namespace {

std::shared_ptr<Expression> make(Expression::Kind kind) {
  auto e = std::make_shared<Expression>();
  e->kind = kind;
  return e;
}

// `part` belongs to `e`; it may be null.
void deepen(Expression& e, const Expr& part) {
  if (part == nullptr) return;
  e.depth = std::max(e.depth, part->depth + 1);
  if (e.depth > kExpressionDepthMax)
    fail(fmt::format("it is nested more than {} deep: simplify it", kExpressionDepthMax));
}

constexpr uint32_t kFirstSurrogate = 0xD800, kLastSurrogate = 0xDFFF;

std::string encode(uint32_t c) {
  std::string out;
  append_utf8(out, c);
  return out;
}

// The texts between `low` and `high`, which have the same length and the same UTF-8 head class.
Expr between(std::string_view low, std::string_view high) {
  if (low.empty()) return text("");
  const auto first = uint8_t(low[0]), last = uint8_t(high[0]);
  if (low.size() == 1) return byte_range(first, last);
  const std::string lowest(low.size() - 1, char(0x80)), highest(low.size() - 1, char(0xBF));
  const auto rest = [&](std::string_view a, std::string_view b) { return between(a, b); };
  if (first == last)
    return sequence({byte_range(first, first), rest(low.substr(1), high.substr(1))});
  std::vector<Expr> parts;
  int from = first, to = last;
  if (low.substr(1) != lowest)
    parts.push_back(
        sequence({byte_range(uint8_t(from), uint8_t(from)), rest(low.substr(1), highest)})),
        ++from;
  if (high.substr(1) != highest)
    parts.push_back(sequence({byte_range(uint8_t(to), uint8_t(to)), rest(lowest, high.substr(1))})),
        --to;
  if (from <= to)
    parts.push_back(sequence({byte_range(uint8_t(from), uint8_t(to)), rest(lowest, highest)}));
  return choice(std::move(parts));
}

}  // namespace

Expr text(std::string bytes) {
  auto e = make(Expression::Kind::bytes);
  e->bytes = std::move(bytes);
  return e;
}

Expr byte_range(uint8_t first, uint8_t last) {
  auto e = make(Expression::Kind::byte_range);
  e->first = first;
  e->last = last;
  return e;
}

Expr sequence(std::vector<Expr> parts) {
  if (std::ranges::find(parts, nullptr) != parts.end()) return nullptr;
  if (parts.size() == 1) return parts.front();
  auto e = make(Expression::Kind::sequence);
  for (const Expr& part : parts) deepen(*e, part);
  e->parts = std::move(parts);
  return e;
}

Expr choice(std::vector<Expr> parts) {
  std::erase(parts, nullptr);
  if (parts.empty()) return nullptr;
  if (parts.size() == 1) return parts.front();
  auto e = make(Expression::Kind::choice);
  for (const Expr& part : parts) deepen(*e, part);
  e->parts = std::move(parts);
  return e;
}

Expr repeat(Expr part, int least, int most) {
  if (most >= 0 && least > most) return nullptr;
  if (part == nullptr || most == 0) return least == 0 ? text("") : nullptr;
  if (least == 1 && most == 1) return part;
  auto e = make(Expression::Kind::repeat);
  deepen(*e, part);
  e->parts.push_back(std::move(part));
  e->least = least;
  e->most = most;
  return e;
}

Expr optional(Expr part) { return repeat(std::move(part), 0, 1); }

Expr call(int rule) {
  auto e = make(Expression::Kind::call);
  e->rule = rule;
  return e;
}

Expr automaton(std::shared_ptr<const Automaton> automaton) {
  auto e = make(Expression::Kind::automaton);
  e->automaton = std::move(automaton);
  return e;
}

Expr listing(std::vector<ListItem> items, Expr separator, Expr more) {
  for (const ListItem& item : items)
    if (item.expression == nullptr && item.required) return nullptr;
  std::erase_if(items, [](const ListItem& item) { return item.expression == nullptr; });
  auto e = make(Expression::Kind::listing);
  for (const ListItem& item : items) deepen(*e, item.expression);
  deepen(*e, separator);
  deepen(*e, more);
  e->items = std::move(items);
  e->separator = std::move(separator);
  e->more = std::move(more);
  return e;
}

CharRanges normalized(CharRanges ranges) {
  CharRanges whole;
  for (CharRange r : ranges) {
    r.last = std::min(r.last, kLastChar);
    if (r.first > r.last) continue;
    if (r.first < kFirstSurrogate && r.last >= kFirstSurrogate) {
      whole.push_back({r.first, kFirstSurrogate - 1});
      r.first = kFirstSurrogate;
    }
    if (r.first >= kFirstSurrogate && r.first <= kLastSurrogate) r.first = kLastSurrogate + 1;
    if (r.first <= r.last) whole.push_back(r);
  }
  std::ranges::sort(whole, {}, &CharRange::first);
  CharRanges joined;
  for (const CharRange& r : whole) {
    if (!joined.empty() && r.first <= joined.back().last + 1)
      joined.back().last = std::max(joined.back().last, r.last);
    else
      joined.push_back(r);
  }
  return joined;
}

CharRanges complement(const CharRanges& ranges) {
  CharRanges rest;
  uint32_t next = 0;
  for (const CharRange& r : normalized(ranges)) {
    if (r.first > next) rest.push_back({next, r.first - 1});
    next = r.last + 1;
  }
  if (next <= kLastChar) rest.push_back({next, kLastChar});
  return normalized(std::move(rest));
}

CharRanges intersection(const CharRanges& a, const CharRanges& b) {
  CharRanges both = complement(a);
  const CharRanges other = complement(b);
  both.insert(both.end(), other.begin(), other.end());
  return complement(both);
}

Expr utf8(const CharRanges& ranges) {
  static constexpr uint32_t kLengthEnds[] = {0x7F, 0x7FF, 0xFFFF, kLastChar};
  std::vector<Expr> parts;
  for (CharRange r : normalized(ranges))
    for (const uint32_t end : kLengthEnds) {
      if (r.first > end) continue;
      parts.push_back(between(encode(r.first), encode(std::min(r.last, end))));
      if (r.last <= end) break;
      r.first = end + 1;
    }
  return choice(std::move(parts));
}

void fail(std::string message) { throw Failure{std::move(message)}; }

}  // namespace kivi::grammar
