// SPDX-License-Identifier: Apache-2.0
// The filters of `x | ...`.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>

#include "engine/jinja/evaluator.h"
#include "engine/jinja/text.h"

namespace kivi::jinja {
namespace {

using SequenceKind = Sequence::Kind;

bool given(const Value& value) { return !value.is_undefined() && !value.is_none(); }

Value default_(Evaluator&, const Value& input, const Arguments& arguments) {
  const auto all = arguments.bind("default", {"default_value", "boolean"});
  const bool use = input.is_undefined() || (truthy(all[1]) && !truthy(input));
  if (!use) return input;
  const bool has = !arguments.positional.empty() ||
                   std::ranges::any_of(arguments.keywords,
                                       [](const auto& k) { return k.first == "default_value"; });
  return has ? all[0] : Value(std::string());
}

Value length_(Evaluator& e, const Value& input, const Arguments& arguments) {
  arguments.bind("length", {});
  if (input.is_undefined()) return Value::integer(0);
  if (const auto* text = input.string()) {
    e.step(weight_of(input));
    return Value::integer(length(*text));
  }
  if (const auto* dict = input.dict()) return Value::integer(int64_t(dict->items.size()));
  const auto* sequence = input.sequence();
  if (sequence == nullptr || !sequence->has_length())
    fail(fmt::format("a {} has no length", type_name(input)));
  return Value::integer(int64_t(sequence->items.size()));
}

Value first(Evaluator& e, const Value& input, const Arguments& arguments) {
  arguments.bind("first", {});
  if (const auto* sequence = input.sequence()) {
    if (sequence->kind == SequenceKind::generator)
      return sequence->next < sequence->items.size() ? sequence->items[sequence->next++] : Value();
    return sequence->items.empty() ? Value() : sequence->items[0];
  }
  if (const auto* text = input.string(); text != nullptr && !text->empty())
    return e.text(text->substr(0, byte_of(*text, 1)));
  const std::vector<Value> items = iterate(e, input);
  return items.empty() ? Value() : items[0];
}

Value last(Evaluator& e, const Value& input, const Arguments& arguments) {
  arguments.bind("last", {});
  if (const auto* sequence = input.sequence()) {
    if (sequence->kind == SequenceKind::generator)
      fail("a generator has no last item, make a list of it");
    return sequence->items.empty() ? Value() : sequence->items.back();
  }
  const std::vector<Value> items = iterate(e, input);
  return items.empty() ? Value() : items.back();
}

Value list_(Evaluator& e, const Value& input, const Arguments& arguments) {
  arguments.bind("list", {});
  return e.list(SequenceKind::list, iterate(e, input));
}

Value items_(Evaluator& e, const Value& input, const Arguments& arguments) {
  arguments.bind("items", {});
  std::vector<Value> pairs;
  if (input.dict() == nullptr && !input.is_undefined())
    fail(fmt::format("a {} has no items, must be a dict", type_name(input)));
  if (input.dict() != nullptr)
    for (const auto& [key, value] : input.dict()->items)
      pairs.push_back(e.list(SequenceKind::tuple, {key, value}));
  return e.list(SequenceKind::generator, std::move(pairs));
}

Value string_(Evaluator& e, const Value& input, const Arguments& arguments) {
  arguments.bind("string", {});
  return input.string() != nullptr ? input : e.text(text_of(e, input));
}

template <std::string (*convert)(std::string_view)>
Value converted(Evaluator& e, const Value& input, const Arguments& arguments) {
  arguments.bind("the filter", {});
  return e.text(convert(text_of(e, input)));
}

Value trim(Evaluator& e, const Value& input, const Arguments& arguments) {
  const auto all = arguments.bind("trim", {"chars"});
  const std::string text = text_of(e, input);
  if (!given(all[0])) return e.text(std::string(strip(text, Side::both)));
  const std::string characters = text_of(e, all[0]);
  e.step(int64_t(text.size() / 64 + 1) * int64_t(characters.size() + 1));
  return e.text(std::string(strip(text, Side::both, characters)));
}

Value replace_(Evaluator& e, const Value& input, const Arguments& arguments) {
  const auto all = arguments.bind("replace", {"old", "new", "count"}, 2);
  const int64_t count = all[2].is_none() ? -1 : integer_of(all[2], -1, "count");
  auto replaced =
      replace(text_of(e, input), text_of(e, all[0]), text_of(e, all[1]), count, e.text_bytes_max());
  if (!replaced) fail(fmt::format("a text grows beyond {} bytes", e.text_bytes_max()));
  return e.text(std::move(*replaced));
}

// x.a.b of "a.b"; a part of digits is an index.
Value dig(Evaluator& e, Value item, const Value& path, const Value& otherwise = Value()) {
  const auto part = [&](const Value& key) {
    item = get_item(e, item, key);
    if (given(otherwise) && item.is_undefined()) item = otherwise;
  };
  if (const auto* text = path.string()) {
    for (const std::string_view name : split(*text, ".", -1)) {
      int64_t index = 0;
      if (all_are(name, CharacterClass::digit) &&
          std::from_chars(name.data(), name.data() + name.size(), index).ec == std::errc())
        part(Value::integer(index));
      else
        part(e.text(std::string(name)));
    }
  } else if (given(path)) {
    part(path);
  }
  return item;
}

// Keys to sort by: strings in lower case, where case does not count.
Value folded(Evaluator& e, const Value& value, bool case_sensitive) {
  const auto* text = value.string();
  return text == nullptr || case_sensitive ? value : e.text(lower(*text));
}

Value join(Evaluator& e, const Value& input, const Arguments& arguments) {
  const auto all = arguments.bind("join", {"d", "attribute"});
  const std::string separator = all[0].is_undefined() ? "" : text_of(e, all[0]);
  std::string joined;
  bool begun = false;
  for (const Value& item : iterate(e, input)) {
    if (std::exchange(begun, true)) joined += separator;
    append_str(joined, given(all[1]) ? dig(e, item, all[1]) : item, e.text_bytes_max());
  }
  return e.text(std::move(joined));
}

Value reverse_(Evaluator& e, const Value& input, const Arguments& arguments) {
  arguments.bind("reverse", {});
  std::vector<Value> items = iterate(e, input);
  std::ranges::reverse(items);
  if (input.string() == nullptr) {
    const auto* sequence = input.sequence();
    const bool reversible =
        input.dict() != nullptr || (sequence != nullptr && sequence->has_length());
    return e.list(reversible ? SequenceKind::generator : SequenceKind::list, std::move(items));
  }
  std::string text;
  for (const Value& character : items) text += *character.string();
  return e.text(std::move(text));
}

Arguments rest_of(const Arguments& arguments, size_t from) {
  Arguments rest = arguments;
  const size_t skipped = std::min(from, rest.positional.size());
  rest.positional.erase(rest.positional.begin(), rest.positional.begin() + long(skipped));
  return rest;
}

Value map_(Evaluator& e, const Value& input, const Arguments& arguments) {
  std::vector<Value> mapped;
  if (arguments.positional.empty()) {
    const auto all = arguments.bind("map", {"attribute", "default"}, 1);
    for (const Value& item : iterate(e, input)) mapped.push_back(dig(e, item, all[0], all[1]));
    return e.list(SequenceKind::generator, std::move(mapped));
  }
  const auto* name = arguments.positional[0].string();
  const Filter* filter = name == nullptr ? nullptr : find_filter(*name);
  if (filter == nullptr) fail("map needs the name of a filter that is supported");
  const Arguments rest = rest_of(arguments, 1);
  for (const Value& item : iterate(e, input)) mapped.push_back(filter->apply(e, item, rest));
  return e.list(SequenceKind::generator, std::move(mapped));
}

template <bool wanted, bool by_attribute>
Value select_(Evaluator& e, const Value& input, const Arguments& arguments) {
  std::vector<Value> picked;
  if (!truthy(input)) return e.list(SequenceKind::generator, {});
  constexpr size_t kOffset = by_attribute ? 1 : 0;
  if (arguments.positional.size() < kOffset) fail("the name of an attribute is missing");
  const Test* test = nullptr;
  if (arguments.positional.size() > kOffset) {
    const auto* name = arguments.positional[kOffset].string();
    test = name == nullptr ? nullptr : find_test(*name);
    if (test == nullptr) fail("select and reject need the name of a test that is supported");
  }
  const Arguments rest = rest_of(arguments, kOffset + 1);
  for (const Value& item : iterate(e, input)) {
    e.step();
    const Value value = by_attribute ? dig(e, item, arguments.positional[0]) : item;
    if ((test == nullptr ? truthy(value) : test->holds(e, value, rest)) == wanted)
      picked.push_back(item);
  }
  return e.list(SequenceKind::generator, std::move(picked));
}

// Sorts by keys, stably.
struct Keyed {
  std::vector<Value> keys;
  Value item;
};
void sort_keyed(Evaluator& e, std::vector<Keyed>& keyed, bool reverse) {
  std::stable_sort(keyed.begin(), keyed.end(), [&](const Keyed& a, const Keyed& b) {
    const Keyed &x = reverse ? b : a, &y = reverse ? a : b;
    for (size_t i = 0; i < x.keys.size(); ++i) {
      e.step(std::min(weight_of(x.keys[i]), weight_of(y.keys[i])));
      if (!equal(x.keys[i], y.keys[i])) return less(x.keys[i], y.keys[i]);
    }
    return false;
  });
}

Value sorted_items(Evaluator& e, std::vector<Keyed> keyed, bool reverse) {
  sort_keyed(e, keyed, reverse);
  std::vector<Value> items;
  for (Keyed& k : keyed) items.push_back(std::move(k.item));
  return e.list(SequenceKind::list, std::move(items));
}

Value sort_(Evaluator& e, const Value& input, const Arguments& arguments) {
  const auto all = arguments.bind("sort", {"reverse", "case_sensitive", "attribute"});
  std::vector<Value> paths;
  if (const auto* text = all[2].string())
    for (const std::string_view path : split(*text, ",", -1))
      paths.push_back(e.text(std::string(path)));
  else
    paths.push_back(all[2]);
  std::vector<Keyed> keyed;
  for (const Value& item : iterate(e, input)) {
    Keyed k;
    for (const Value& path : paths) k.keys.push_back(folded(e, dig(e, item, path), truthy(all[1])));
    k.item = item;
    keyed.push_back(std::move(k));
  }
  return sorted_items(e, std::move(keyed), truthy(all[0]));
}

Value dictsort(Evaluator& e, const Value& input, const Arguments& arguments) {
  const auto all = arguments.bind("dictsort", {"case_sensitive", "by", "reverse"});
  const std::string by = all[1].is_undefined() ? "key" : text_of(e, all[1]);
  if (by != "key" && by != "value") fail("dictsort sorts by \"key\" or by \"value\"");
  if (input.dict() == nullptr)
    fail(fmt::format("dictsort takes a dict, got a {}", type_name(input)));
  std::vector<Keyed> keyed;
  for (const auto& [key, value] : input.dict()->items)
    keyed.push_back({{folded(e, by == "key" ? key : value, truthy(all[0]))},
                     e.list(SequenceKind::tuple, {key, value})});
  return sorted_items(e, std::move(keyed), truthy(all[2]));
}

Value unique(Evaluator& e, const Value& input, const Arguments& arguments) {
  const auto all = arguments.bind("unique", {"case_sensitive", "attribute"});
  std::vector<Value> keys, picked;
  for (const Value& item : iterate(e, input)) {
    const Value key = folded(e, dig(e, item, all[1]), truthy(all[0]));
    if (key.dict() != nullptr ||
        (key.sequence() != nullptr && key.sequence()->kind == SequenceKind::list))
      fail(fmt::format("unique cannot compare values of type {}", type_name(key)));
    e.step(int64_t(keys.size()) * weight_of(key));
    if (std::ranges::any_of(keys, [&](const Value& known) { return equal(known, key); })) continue;
    keys.push_back(key);
    picked.push_back(item);
  }
  return e.list(SequenceKind::generator, std::move(picked));
}

template <bool largest>
Value extreme(Evaluator& e, const Value& input, const Arguments& arguments) {
  const auto all = arguments.bind(largest ? "max" : "min", {"case_sensitive", "attribute"});
  Value best, best_key;
  bool begun = false;
  for (const Value& item : iterate(e, input)) {
    const Value key = folded(e, dig(e, item, all[1]), truthy(all[0]));
    e.step(weight_of(key));
    if (begun && !(largest ? less(best_key, key) : less(key, best_key))) continue;
    begun = true;
    best = item;
    best_key = key;
  }
  return best;
}

Value sum(Evaluator& e, const Value& input, const Arguments& arguments) {
  const auto all = arguments.bind("sum", {"attribute", "start"});
  Value total = all[1].is_undefined() ? Value::integer(0) : all[1];
  for (const Value& item : iterate(e, input)) total = e.add(total, dig(e, item, all[0]));
  return total;
}

// The whole text as a number, as Python's int() and float() read one.
template <class Number>
std::optional<Number> read_number(std::string_view text) {
  text = strip(text, Side::both);
  if (text.starts_with('+') && !text.substr(1).starts_with('-')) text.remove_prefix(1);
  std::string digits(text);
  if (digits.starts_with('_') || digits.ends_with('_') || digits.find("__") != std::string::npos)
    return std::nullopt;
  std::erase(digits, '_');
  Number value{};
  const auto read = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (read.ec == std::errc::result_out_of_range) fail("a number does not fit in 64 bits");
  if (read.ec != std::errc() || read.ptr != digits.data() + digits.size()) return std::nullopt;
  return value;
}

Value whole_of(double number, const Value& otherwise) {
  if (std::isnan(number)) return otherwise;
  if (!(std::abs(number) < 9.2e18)) fail("a number does not fit in 64 bits");
  return Value::integer(int64_t(number));
}

Value int_(Evaluator& e, const Value& input, const Arguments& arguments) {
  const auto all = arguments.bind("int", {"default", "base"});
  if (!all[1].is_undefined() && integer_of(all[1], 10, "base") != 10)
    fail_unsupported("int with a base other than 10", 0);
  Value otherwise = all[0].is_undefined() ? Value::integer(0) : all[0];
  if (input.is_integral()) return Value::integer(input.as_integer());
  if (const auto* number = input.number()) return whole_of(*number, otherwise);
  if (const auto* undefined = std::get_if<Undefined>(&input.state))
    fail(undefined_message(*undefined));
  const auto* text = input.string();
  if (text == nullptr) return otherwise;
  e.step(weight_of(input));
  if (const auto whole = read_number<int64_t>(*text)) return Value::integer(*whole);
  if (const auto number = read_number<double>(*text)) return whole_of(*number, otherwise);
  return otherwise;
}

Value float_(Evaluator& e, const Value& input, const Arguments& arguments) {
  const auto all = arguments.bind("float", {"default"});
  if (input.is_numeric()) return Value(input.as_number());
  if (const auto* undefined = std::get_if<Undefined>(&input.state))
    fail(undefined_message(*undefined));
  e.step(weight_of(input));
  if (const auto* text = input.string())
    if (const auto number = read_number<double>(*text)) return Value(*number);
  return all[0].is_undefined() ? Value(0.0) : all[0];
}

Value abs_(Evaluator&, const Value& input, const Arguments& arguments) {
  arguments.bind("abs", {});
  if (const auto* number = input.number()) return Value(std::abs(*number));
  const int64_t whole = integer_of(input, 0, "the value of abs");
  if (whole == INT64_MIN) fail("a whole number does not fit in 64 bits");
  return Value::integer(whole < 0 ? -whole : whole);
}

Value round_(Evaluator& e, const Value& input, const Arguments& arguments) {
  const auto all = arguments.bind("round", {"precision", "method"});
  const int64_t digits = integer_of(all[0], 0, "precision");
  const std::string method = all[1].is_undefined() ? "common" : text_of(e, all[1]);
  if (!input.is_numeric()) fail(fmt::format("a {} cannot be rounded", type_name(input)));
  if (digits < 0 || digits > 300) fail_unsupported("round to a precision beyond [0, 300]", 0);
  if (method == "common") {
    if (input.is_integral()) return Value::integer(input.as_integer());
    // The nearest decimal of the exact value, which is what Python's round gives.
    const std::string text = fmt::format("{:.{}f}", *input.number(), int(digits));
    double rounded = 0;
    std::from_chars(text.data(), text.data() + text.size(), rounded);
    return std::isfinite(*input.number()) ? Value(rounded) : input;
  }
  const double scale = std::pow(10.0, double(digits)), scaled = input.as_number() * scale;
  if (method == "ceil") return Value(std::ceil(scaled) / scale);
  if (method == "floor") return Value(std::floor(scaled) / scale);
  fail("the method of round must be common, ceil or floor");
}

Value wordcount(Evaluator& e, const Value& input, const Arguments& arguments) {
  arguments.bind("wordcount", {});
  int64_t words = 0;
  bool inside = false;
  const std::string text = text_of(e, input);
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const char32_t c = next_character(text, at);
    const std::string_view character = std::string_view(text).substr(begin, at - begin);
    const bool word = c == '_' || all_are(character, CharacterClass::alnum);
    if (word && !inside) ++words;
    inside = word;
  }
  return Value::integer(words);
}

Value indent(Evaluator& e, const Value& input, const Arguments& arguments) {
  const auto all = arguments.bind("indent", {"width", "first", "blank"});
  const auto* own = all[0].string();
  const int64_t width = own == nullptr ? integer_of(all[0], 4, "width") : 0;
  if (width > int64_t(e.text_bytes_max())) fail("the width of indent is too large");
  const std::string indention =
      own != nullptr ? *own : std::string(size_t(std::max<int64_t>(0, width)), ' ');
  if (input.string() == nullptr)
    fail(fmt::format("indent takes a text, got a {}", type_name(input)));
  std::string text = text_of(e, input);
  text += '\n';
  std::string out;
  bool begun = false;
  for (const std::string_view line : split_lines(text, false)) {
    if (begun) out += '\n';
    if (begun ? truthy(all[2]) || !line.empty() : truthy(all[1])) out += indention;
    begun = true;
    out += line;
    if (out.size() > e.text_bytes_max()) break;  // and text() fails
  }
  return e.text(std::move(out));
}

Value tojson(Evaluator& e, const Value& input, const Arguments& arguments) {
  const auto all = arguments.bind("tojson", {"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonStyle style;
  style.ascii = truthy(all[0]);
  style.sort_keys = truthy(all[3]);
  if (given(all[1])) {
    style.lines = true;
    style.item_separator.assign(1, ',');
    const auto* text = all[1].string();
    const int64_t width = text == nullptr ? integer_of(all[1], 0, "indent") : 0;
    if (width > 1000) fail("the indent of tojson is more than 1000");
    style.indent = text != nullptr ? *text : std::string(size_t(std::max<int64_t>(0, width)), ' ');
  }
  if (given(all[2])) {
    const std::vector<Value> two = iterate(e, all[2]);
    if (two.size() != 2 || two[0].string() == nullptr || two[1].string() == nullptr)
      fail("the separators of tojson must be two strings");
    style.item_separator = *two[0].string();
    style.key_separator = *two[1].string();
  }
  std::string out;
  append_json(out, input, style, e.text_bytes_max());
  return e.text(std::move(out));
}

const Filter kFilters[] = {
    {"abs", abs_},
    {"capitalize", converted<capitalize>},
    {"count", length_},
    {"d", default_},
    {"default", default_},
    {"dictsort", dictsort},
    {"first", first},
    {"float", float_},
    {"indent", indent},
    {"int", int_},
    {"items", items_},
    {"join", join},
    {"last", last},
    {"length", length_},
    {"list", list_},
    {"lower", converted<lower>},
    {"map", map_},
    {"max", extreme<true>},
    {"min", extreme<false>},
    {"reject", select_<false, false>},
    {"rejectattr", select_<false, true>},
    {"replace", replace_},
    {"reverse", reverse_},
    {"round", round_},
    {"safe", string_},  // nothing is escaped
    {"select", select_<true, false>},
    {"selectattr", select_<true, true>},
    {"sort", sort_},
    {"string", string_},
    {"sum", sum},
    {"title", converted<title_filter>},
    {"tojson", tojson},
    {"trim", trim},
    {"unique", unique},
    {"upper", converted<upper>},
    {"wordcount", wordcount},
};

}  // namespace

const Filter* find_filter(std::string_view name) {
  const auto* filter =
      std::ranges::find(kFilters, name, [](const Filter& f) { return std::string_view(f.name); });
  return filter == std::end(kFilters) ? nullptr : filter;
}

}  // namespace kivi::jinja
