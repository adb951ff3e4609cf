// SPDX-License-Identifier: Apache-2.0
#include "engine/grammar/json_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "engine/grammar/automaton.h"

namespace kivi::grammar {
namespace {

constexpr std::pair<char, char> kShortEscapes[] = {
    {'"', '"'}, {'\\', '\\'}, {'\b', 'b'}, {'\f', 'f'}, {'\n', 'n'}, {'\r', 'r'}, {'\t', 't'}};

std::string escape_of(char c) {
  for (const auto& [plain, escape] : kShortEscapes)
    if (plain == c) return {'\\', escape};
  if (static_cast<unsigned char>(c) < 0x20) return fmt::format("\\u{:04x}", int(c));
  return std::string(1, c);
}

Expr digit() { return byte_range('0', '9'); }
Expr digits() { return repeat(digit(), 0, -1); }
Expr digit_between(char first, char last) {
  return first > last ? nullptr : byte_range(uint8_t(first), uint8_t(last));
}

// A number without its sign.
struct Decimal {
  std::string whole = "0", fraction;  // without zeros in front and at the end
  bool zero() const { return whole == "0" && fraction.empty(); }
};

struct Signed {
  bool negative = false;
  Decimal size;
};

// Reads "-1.5", "2e10", "1E-3".
Signed read_decimal(const std::string& text) {
  Signed out;
  std::string digits_seen;
  size_t at = 0;
  int64_t point = -1;
  if (at < text.size() && text[at] == '-') out.negative = true, ++at;
  for (; at < text.size() && text[at] != 'e' && text[at] != 'E'; ++at) {
    if (text[at] == '.')
      point = int64_t(digits_seen.size());
    else if (text[at] >= '0' && text[at] <= '9')
      digits_seen += text[at];
    else
      fail(fmt::format("{} is no decimal number", text));
  }
  if (point < 0) point = int64_t(digits_seen.size());
  if (at < text.size()) point += std::atoll(text.c_str() + at + 1);
  constexpr int64_t kDigitsMax = 400;
  if (point > kDigitsMax || point < -kDigitsMax)
    fail(fmt::format("{} is beyond the numbers that we count with (400 digits)", text));
  if (point < 0) digits_seen.insert(0, size_t(-point), '0'), point = 0;
  if (size_t(point) > digits_seen.size())
    digits_seen.append(size_t(point) - digits_seen.size(), '0');
  out.size.whole = digits_seen.substr(0, size_t(point));
  out.size.fraction = digits_seen.substr(size_t(point));
  const size_t first = out.size.whole.find_first_not_of('0');
  out.size.whole = first == std::string::npos ? "0" : out.size.whole.substr(first);
  while (!out.size.fraction.empty() && out.size.fraction.back() == '0')
    out.size.fraction.pop_back();
  if (out.size.zero()) out.negative = false;
  return out;
}

Expr any_whole() { return choice({text("0"), sequence({byte_range('1', '9'), digits()})}); }
Expr any_fraction() { return optional(sequence({text("."), digit(), digits()})); }

// Digits of the same count that are larger (or smaller) than `than`, read from the left.
Expr beyond_digits(const std::string& than, bool larger, bool leading) {
  std::vector<Expr> parts;
  for (size_t i = 0; i < than.size(); ++i) {
    const char lowest = leading && i == 0 && than.size() > 1 ? '1' : '0';
    const Expr next =
        larger ? digit_between(char(than[i] + 1), '9') : digit_between(lowest, char(than[i] - 1));
    if (next == nullptr) continue;
    const int rest = int(than.size() - i) - 1;
    parts.push_back(sequence({text(than.substr(0, i)), next, repeat(digit(), rest, rest)}));
  }
  return choice(std::move(parts));
}

// Numbers without sign that are at least `bound` (or beyond it, if it is excluded).
Expr at_least(const Decimal& bound, bool excluded, bool integers) {
  const Expr fraction = integers ? text("") : any_fraction();
  std::vector<Expr> parts;
  const int length = int(bound.whole.size());
  parts.push_back(
      sequence({byte_range('1', '9'), repeat(digit(), length, -1), fraction}));  // more digits
  if (const Expr more = beyond_digits(bound.whole, true, true))
    parts.push_back(sequence({more, fraction}));
  if (integers) {
    if (bound.fraction.empty() && !excluded) parts.push_back(text(bound.whole));
    return choice(std::move(parts));
  }
  const std::string& f = bound.fraction;
  if (f.empty()) {
    if (!excluded) {
      parts.push_back(sequence({text(bound.whole), any_fraction()}));
    } else {  // a fraction that is not zero
      parts.push_back(sequence(
          {text(bound.whole + "."), repeat(text("0"), 0, -1), byte_range('1', '9'), digits()}));
    }
    return choice(std::move(parts));
  }
  const Expr same = text(bound.whole + ".");
  for (size_t i = 0; i < f.size(); ++i)
    if (const Expr next = digit_between(char(f[i] + 1), '9'))
      parts.push_back(sequence({same, text(f.substr(0, i)), next, digits()}));
  if (excluded)
    parts.push_back(
        sequence({same, text(f), repeat(text("0"), 0, -1), byte_range('1', '9'), digits()}));
  else
    parts.push_back(sequence({same, text(f), digits()}));
  return choice(std::move(parts));
}

Expr at_most(const Decimal& bound, bool excluded, bool integers) {
  const Expr fraction = integers ? text("") : any_fraction();
  const Expr zeros =
      integers ? text("") : optional(sequence({text("."), repeat(text("0"), 1, -1)}));
  std::vector<Expr> parts;
  const int length = int(bound.whole.size());
  if (length > 1)  // fewer digits
    parts.push_back(sequence(
        {choice({text("0"), sequence({byte_range('1', '9'), repeat(digit(), 0, length - 2)})}),
         fraction}));
  if (const Expr less = beyond_digits(bound.whole, false, true))
    parts.push_back(sequence({less, fraction}));
  const std::string& f = bound.fraction;
  if (f.empty()) {
    if (!excluded) parts.push_back(sequence({text(bound.whole), zeros}));
    return choice(std::move(parts));
  }
  if (integers) {
    parts.push_back(text(bound.whole));
    return choice(std::move(parts));
  }
  parts.push_back(text(bound.whole));
  const Expr same = text(bound.whole + ".");
  for (size_t i = 0; i < f.size(); ++i) {
    // A fraction that ends early is smaller, and one with a smaller digit is.
    if (i > 0) parts.push_back(sequence({same, text(f.substr(0, i))}));
    if (const Expr next = digit_between('0', char(f[i] - 1)))
      parts.push_back(sequence({same, text(f.substr(0, i)), next, digits()}));
  }
  if (!excluded) parts.push_back(sequence({same, text(f), repeat(text("0"), 0, -1)}));
  return choice(std::move(parts));
}

// Sizes between both, if they are there.
Expr sizes(const std::optional<Decimal>& least, bool least_excluded,
           const std::optional<Decimal>& most, bool most_excluded, bool integers) {
  Expr low = least ? at_least(*least, least_excluded, integers) : nullptr;
  Expr high = most ? at_most(*most, most_excluded, integers) : nullptr;
  if (!least && !most) return sequence({any_whole(), integers ? text("") : any_fraction()});
  if (!most) return low;
  if (!least) return high;
  if (low == nullptr || high == nullptr) return nullptr;
  auto both =
      std::make_shared<Automaton>(intersection(build_automaton(low), build_automaton(high)));
  const bool any = std::ranges::any_of(both->next, [](int32_t to) { return to >= 0; });
  return any ? automaton(std::move(both)) : nullptr;
}

Expr bounded(const NumberBounds& b, bool integers) {
  std::optional<Signed> least, most;
  if (b.least) least = read_decimal(*b.least);
  if (b.most) most = read_decimal(*b.most);
  const bool above_zero = least && !least->negative, below_zero = most && most->negative;
  Expr positive, negative;
  if (!below_zero) {
    std::optional<Decimal> low, high;
    bool low_excluded = false;
    if (above_zero) low = least->size, low_excluded = b.least_excluded;
    if (most) high = most->size;
    positive = sizes(low, low_excluded, high, b.most_excluded, integers);
  }
  if (!above_zero) {  // sizes turned around; -0 is left to the positive numbers
    Decimal low;
    bool low_excluded = true;
    if (below_zero) low = most->size, low_excluded = b.most_excluded;
    std::optional<Decimal> high;
    if (least) high = least->size;
    negative = sizes(low, low_excluded, high, b.least_excluded, integers);
  }
  return choice({positive, negative ? sequence({text("-"), negative}) : nullptr});
}

// Digits whose value is a multiple of n.
std::shared_ptr<Automaton> multiples(int n) {
  auto a = std::make_shared<Automaton>();
  // Classes: the ten digits, the sign, all else.
  a->class_of.fill(11);
  for (int d = 0; d < 10; ++d) a->class_of[size_t('0' + d)] = uint8_t(d);
  a->class_of['-'] = 10;
  a->class_count = 12;
  // State 0 is before the first digit, 1 + r has the remainder r.
  for (int s = 0; s <= n; ++s) {
    for (int d = 0; d < 10; ++d) a->next.push_back(1 + ((s == 0 ? 0 : s - 1) * 10 + d) % n);
    a->next.push_back(s == 0 ? 0 : -1);
    a->next.push_back(-1);
    a->final.push_back(s == 1);
  }
  a->calls.resize(size_t(n) + 1);
  return a;
}

}  // namespace

Expr json_characters(const CharRanges& ranges) {
  const CharRanges controls{{0, 0x1F}}, escaped{{0, 0x1F}, {'"', '"'}, {'\\', '\\'}};
  std::vector<Expr> parts{utf8(intersection(ranges, complement(escaped)))};
  for (const CharRange& r : intersection(ranges, escaped))
    for (uint32_t c = r.first; c <= r.last; ++c) {
      std::string escape = escape_of(char(c));
      if (escape.size() == 6 && escape.back() > '9')  // \u001b and \u001B
        parts.push_back(text(escape.substr(0, 5) + char(escape.back() - 32)));
      parts.push_back(text(std::move(escape)));
    }
  return choice(std::move(parts));
}

Expr json_any_character() {
  const Expr hex = choice({byte_range('0', '9'), byte_range('a', 'f'), byte_range('A', 'F')});
  const auto letter = [](char upper) {
    return choice({text(std::string(1, upper)), text(std::string(1, char(upper + 32)))});
  };
  const Expr d = letter('D');
  const Expr plain_unit =
      choice({sequence({choice({byte_range('0', '9'), byte_range('a', 'c'), byte_range('A', 'C'),
                                byte_range('e', 'f'), byte_range('E', 'F')}),
                        hex, hex, hex}),
              sequence({d, byte_range('0', '7'), hex, hex})});
  const Expr pair =
      sequence({d, choice({byte_range('8', '9'), letter('A'), letter('B')}), hex, hex, text("\\u"),
                d, choice({letter('C'), letter('D'), letter('E'), letter('F')}), hex, hex});
  std::vector<Expr> escapes{text("/"), sequence({text("u"), choice({plain_unit, pair})})};
  for (const auto& [plain, escape] : kShortEscapes) escapes.push_back(text(std::string(1, escape)));
  return choice({utf8(complement({{0, 0x1F}, {'"', '"'}, {'\\', '\\'}})),
                 sequence({text("\\"), choice(std::move(escapes))})});
}

std::string json_escaped(std::string_view text) {
  std::string out;
  for (const char c : text) out += escape_of(c);
  return out;
}

Expr json_integer(const NumberBounds& bounds, int multiple_of) {
  Expr all =
      bounds.bounded() ? bounded(bounds, true) : sequence({optional(text("-")), any_whole()});
  if (all == nullptr || multiple_of <= 1) return all;
  auto both =
      std::make_shared<Automaton>(intersection(build_automaton(all), *multiples(multiple_of)));
  return automaton(std::move(both));
}

Expr json_number(const NumberBounds& bounds) {
  if (bounds.bounded()) return bounded(bounds, false);
  const Expr exponent = sequence({choice({text("e"), text("E")}),
                                  optional(choice({text("+"), text("-")})), digit(), digits()});
  return sequence({optional(text("-")), any_whole(), any_fraction(), optional(exponent)});
}

}  // namespace kivi::grammar
