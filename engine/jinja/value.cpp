// SPDX-License-Identifier: Apache-2.0
#include "engine/jinja/value.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "engine/jinja/text.h"

namespace kivi::jinja {
namespace {

constexpr size_t kIndexedFrom = 8;  // entries of a dict

int depth_of(const Value& value) {
  if (const auto* sequence = value.sequence()) return sequence->depth;
  if (const auto* dict = value.dict()) return dict->depth;
  const auto* method = std::get_if<std::shared_ptr<const Method>>(&value.state);
  return method != nullptr ? depth_of((*method)->self) + 1 : 0;
}

int64_t sum_of(int64_t a, int64_t b) {
  int64_t sum = 0;
  return __builtin_add_overflow(a, b, &sum) ? INT64_MAX : sum;
}

int checked_depth(int inner) {
  if (inner >= kMaxValueDepth)
    fail(fmt::format("a value nests deeper than {} levels", kMaxValueDepth));
  return inner + 1;
}

bool equal_items(const std::vector<Value>& a, const std::vector<Value>& b) {
  return std::ranges::equal(a, b, [](const Value& x, const Value& y) { return equal(x, y); });
}

bool equal_dicts(const Dict& a, const Dict& b) {
  if (a.items.size() != b.items.size()) return false;
  return std::ranges::all_of(a.items, [&](const auto& item) {
    const Value* other = b.find(item.first);
    return other != nullptr && equal(item.second, *other);
  });
}

bool equal_sequences(const Sequence& a, const Sequence& b) {
  if (&a == &b) return true;
  if (a.kind != b.kind || a.kind > Sequence::Kind::range) return false;
  return equal_items(a.items, b.items);
}

void check_size(const std::string& out, size_t bytes_max) {
  if (out.size() > bytes_max) fail(fmt::format("a text grows beyond {} bytes", bytes_max));
}

void append_list(std::string& out, const std::vector<Value>& items, size_t bytes_max) {
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out += ", ";
    append_repr(out, items[i], bytes_max);
  }
}

void append_sequence(std::string& out, const Sequence& sequence, size_t bytes_max) {
  static constexpr const char* kViews[] = {"dict_keys", "dict_values", "dict_items"};
  switch (sequence.kind) {
    case Sequence::Kind::list:
      out += '[';
      append_list(out, sequence.items, bytes_max);
      out += ']';
      return;
    case Sequence::Kind::tuple:
      out += '(';
      append_list(out, sequence.items, bytes_max);
      out += sequence.items.size() == 1 ? ",)" : ")";
      return;
    case Sequence::Kind::keys:
    case Sequence::Kind::values:
    case Sequence::Kind::items:
      out += kViews[int(sequence.kind) - int(Sequence::Kind::keys)];
      out += "([";
      append_list(out, sequence.items, bytes_max);
      out += "])";
      return;
    case Sequence::Kind::range:
    case Sequence::Kind::generator:  // Python would print an address
      break;
  }
  fail(fmt::format("a {} cannot be printed, make a list of it first",
                   sequence.kind == Sequence::Kind::range ? "range" : "generator"));
}

void append_dict(std::string& out, const Dict& dict, size_t bytes_max) {
  out += '{';
  for (size_t i = 0; i < dict.items.size(); ++i) {
    if (i > 0) out += ", ";
    append_repr(out, dict.items[i].first, bytes_max);
    out += ": ";
    append_repr(out, dict.items[i].second, bytes_max);
  }
  out += '}';
}

}  // namespace

void fail(std::string message, int line) { throw Failure{std::move(message), line}; }

void fail_unsupported(const std::string& what, int line) {
  throw Failure{what + " is not supported", line, /*unsupported=*/true};
}

size_t Dict::place(const Value& key) const {
  const auto* text = key.string();
  if (text != nullptr && !index_.empty()) {
    const auto it = index_.find(*text);
    return it == index_.end() ? items.size() : it->second;
  }
  for (size_t i = 0; i < items.size(); ++i)
    if (equal(items[i].first, key)) return i;
  return items.size();
}

const Value* Dict::find(const Value& key) const {
  const size_t at = place(key);
  return at == items.size() ? nullptr : &items[at].second;
}

const Value* Dict::find(std::string_view key) const {
  if (!index_.empty()) {
    const auto it = index_.find(key);
    return it == index_.end() ? nullptr : &items[it->second].second;
  }
  for (const auto& [name, value] : items)
    if (const auto* text = name.string(); text != nullptr && *text == key) return &value;
  return nullptr;
}

void Dict::set(Value key, Value value) {
  if (key.dict() != nullptr || key.name_space() != nullptr ||
      (key.sequence() != nullptr && key.sequence()->kind != Sequence::Kind::tuple))
    fail(fmt::format("a {} cannot be a key", type_name(key)));
  if (const size_t at = place(key); at < items.size()) {
    items[at].second = std::move(value);
    return;
  }
  items.emplace_back(std::move(key), std::move(value));
  if (items.size() < kIndexedFrom) return;
  // The first time of all, then of the new one. The texts are shared, so views of them stay.
  for (size_t i = index_.empty() ? 0 : items.size() - 1; i < items.size(); ++i)
    if (const auto* text = items[i].first.string()) index_.emplace(*text, i);
}

Value make_sequence(Sequence::Kind kind, std::vector<Value> items) {
  int inner = 0;
  auto sequence = std::make_shared<Sequence>();
  for (const Value& item : items) {
    inner = std::max(inner, depth_of(item));
    sequence->weight = sum_of(sequence->weight, weight_of(item));
  }
  sequence->depth = checked_depth(inner);
  sequence->kind = kind;
  sequence->items = std::move(items);
  return Value(std::shared_ptr<const Sequence>(std::move(sequence)));
}

Value make_dict(Dict dict) {
  int inner = 0;
  dict.weight = 1;
  for (const auto& [key, value] : dict.items) {
    inner = std::max({inner, depth_of(key), depth_of(value)});
    dict.weight = sum_of(dict.weight, sum_of(weight_of(key), weight_of(value)));
  }
  dict.depth = checked_depth(inner);
  return Value(std::shared_ptr<const Dict>(std::make_shared<Dict>(std::move(dict))));
}

int64_t weight_of(const Value& value) {
  if (const auto* text = value.string()) return 1 + int64_t(text->size() / 64);
  if (const auto* sequence = value.sequence()) return sequence->weight;
  if (const auto* dict = value.dict()) return dict->weight;
  return 1;
}

const char* type_name(const Value& value) {
  static constexpr const char* kSequences[] = {"list",      "tuple",       "range",     "generator",
                                               "dict_keys", "dict_values", "dict_items"};
  if (const auto* sequence = value.sequence()) return kSequences[int(sequence->kind)];
  static constexpr const char* kNames[] = {"undefined", "None",   "bool",    "int",       "float",
                                           "str",       "list",   "dict",    "namespace", "macro",
                                           "loop",      "method", "function"};
  return kNames[value.state.index()];
}

std::string undefined_message(const Undefined& undefined) {
  if (undefined.name == nullptr) return "the value is undefined";
  if (undefined.attribute) return fmt::format("the object has no attribute '{}'", *undefined.name);
  return fmt::format("'{}' is undefined", *undefined.name);
}

bool truthy(const Value& value) {
  if (value.is_undefined() || value.is_none()) return false;
  if (value.is_integral()) return value.as_integer() != 0;
  if (const auto* number = value.number()) return *number != 0;
  if (const auto* text = value.string()) return !text->empty();
  if (const auto* dict = value.dict()) return !dict->items.empty();
  if (const auto* sequence = value.sequence())
    return !sequence->has_length() || !sequence->items.empty();
  return true;
}

bool equal(const Value& a, const Value& b) {
  if (a.is_integral() && b.is_integral()) return a.as_integer() == b.as_integer();
  if (a.is_numeric() && b.is_numeric()) return a.as_number() == b.as_number();
  if (a.state.index() != b.state.index()) return false;
  if (const auto* text = a.string()) return *text == *b.string();
  if (const auto* sequence = a.sequence()) return equal_sequences(*sequence, *b.sequence());
  if (const auto* dict = a.dict()) return equal_dicts(*dict, *b.dict());
  if (a.is_undefined() || a.is_none()) return true;
  if (const auto* const* macro = std::get_if<const Macro*>(&a.state))
    return *macro == std::get<const Macro*>(b.state);
  if (const auto* function = std::get_if<Function>(&a.state))
    return *function == std::get<Function>(b.state);
  if (a.name_space() != nullptr) return a.name_space() == b.name_space();
  return false;
}

bool less(const Value& a, const Value& b) {
  if (a.is_integral() && b.is_integral()) return a.as_integer() < b.as_integer();
  if (a.is_numeric() && b.is_numeric()) return a.as_number() < b.as_number();
  for (const Value* value : {&a, &b})
    if (const auto* undefined = std::get_if<Undefined>(&value->state))
      fail(undefined_message(*undefined));
  // UTF-8 has the order of its code points.
  if (a.string() != nullptr && b.string() != nullptr) return *a.string() < *b.string();
  const auto *x = a.sequence(), *y = b.sequence();
  if (x != nullptr && y != nullptr && x->kind == y->kind && x->kind <= Sequence::Kind::tuple) {
    for (size_t i = 0; i < std::min(x->items.size(), y->items.size()); ++i)
      if (!equal(x->items[i], y->items[i])) return less(x->items[i], y->items[i]);
    return x->items.size() < y->items.size();
  }
  fail(fmt::format("{} and {} have no order", type_name(a), type_name(b)));
}

void append_str(std::string& out, const Value& value, size_t bytes_max) {
  if (const auto* text = value.string()) {
    out += *text;
    check_size(out, bytes_max);
  } else if (!value.is_undefined()) {
    append_repr(out, value, bytes_max);
  }
}

void append_repr(std::string& out, const Value& value, size_t bytes_max) {
  if (value.is_undefined()) {
    out += "Undefined";
  } else if (value.is_none()) {
    out += "None";
  } else if (const auto* boolean = value.boolean()) {
    out += *boolean ? "True" : "False";
  } else if (const auto* integer = value.integer()) {
    out += std::to_string(*integer);
  } else if (const auto* number = value.number()) {
    out += number_text(*number);
  } else if (const auto* text = value.string()) {
    append_quoted(out, *text);
  } else if (const auto* sequence = value.sequence()) {
    append_sequence(out, *sequence, bytes_max);
  } else if (const auto* dict = value.dict()) {
    append_dict(out, *dict, bytes_max);
  } else {
    fail(fmt::format("a {} cannot be printed", type_name(value)));
  }
  check_size(out, bytes_max);
}

}  // namespace kivi::jinja
