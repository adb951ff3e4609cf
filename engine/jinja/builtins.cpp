// SPDX-License-Identifier: Apache-2.0
// Arguments, attributes, items, loops over values, functions and JSON.
#include "engine/jinja/builtins.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <ctime>

#include "engine/jinja/evaluator.h"
#include "engine/jinja/text.h"

namespace kivi::jinja {
namespace {

constexpr int64_t kMaxRange = 100'000;  // Jinja's sandbox has the same
constexpr size_t kMaxDateFormat = 256, kMaxDate = 4096;

Value make_range(Evaluator& evaluator, const Arguments& arguments) {
  const auto all = arguments.bind("range", {"start", "stop", "step"}, 1);
  const bool one = all[1].is_undefined();
  const int64_t start = one ? 0 : integer_of(all[0], 0, "start");
  const int64_t stop = integer_of(one ? all[0] : all[1], 0, "stop");
  const int64_t stride = integer_of(all[2], 1, "step");
  if (stride == 0) fail("the step of range is 0");
  std::vector<Value> items;
  for (int64_t i = start; stride > 0 ? i < stop : i > stop;) {
    if (int64_t(items.size()) >= kMaxRange)
      fail(fmt::format("a range has more than {} items", kMaxRange));
    items.push_back(Value::integer(i));
    if (__builtin_add_overflow(i, stride, &i)) break;
  }
  evaluator.step(int64_t(items.size()));
  return evaluator.list(Sequence::Kind::range, std::move(items));
}

// dict(mapping, **keywords), and namespace alike.
Dict dict_of(Evaluator& evaluator, const Arguments& arguments) {
  Dict dict;
  if (arguments.positional.size() > 1) fail("dict and namespace take one mapping");
  if (!arguments.positional.empty()) {
    const Value& from = arguments.positional[0];
    if (from.dict() != nullptr) {
      for (const auto& [key, value] : from.dict()->items) dict.set(key, value);
    } else {
      for (const Value& item : iterate(evaluator, from)) {
        std::vector<Value> pair = iterate(evaluator, item);
        if (pair.size() != 2) fail("dict takes pairs of a key and a value");
        dict.set(std::move(pair[0]), std::move(pair[1]));
      }
    }
  }
  for (const auto& [name, value] : arguments.keywords) dict.set(evaluator.text(name), value);
  evaluator.charge(sizeof(Dict) + dict.items.size() * 2 * sizeof(Value));
  evaluator.step(int64_t(dict.items.size()));
  return dict;
}

Value make_namespace(Evaluator& evaluator, const Arguments& arguments) {
  Namespace* space = evaluator.make_namespace();
  for (auto& [key, value] : dict_of(evaluator, arguments).items) {
    if (key.string() == nullptr) fail("the names in a namespace must be strings");
    space->items.emplace_back(*key.string(), std::move(value));
  }
  return Value(space);
}

Value strftime_now(Evaluator& evaluator, const Arguments& arguments) {
  const auto all = arguments.bind("strftime_now", {"format"}, 1);
  const std::string format = text_of(evaluator, all[0]);
  if (format.size() > kMaxDateFormat)
    fail(fmt::format("the format of strftime_now has {} bytes, must be at most {}", format.size(),
                     kMaxDateFormat));
  const std::time_t now = evaluator.now();
  std::tm local{};
  localtime_r(&now, &local);
  char text[kMaxDate];
  const size_t size = std::strftime(text, sizeof text, format.c_str(), &local);
  return evaluator.text(std::string(text, size));
}

const Value* find_in(const Namespace& space, const std::string& name) {
  const auto it = std::ranges::find(space.items, name, &std::pair<std::string, Value>::first);
  return it == space.items.end() ? nullptr : &it->second;
}

std::string json_key(const Value& key, const JsonStyle& style) {
  std::string text;
  if (key.string() != nullptr) {
    text = *key.string();
  } else if (key.boolean() != nullptr || key.is_none() || key.is_numeric()) {
    append_json(text, key, style, SIZE_MAX);
  } else {
    fail(fmt::format("a {} cannot be a key in JSON", type_name(key)));
  }
  std::string quoted;
  append_json_text(quoted, text, style.ascii);
  return quoted;
}

// Opens an item of a list or dict on its own line, where the style says so.
void begin_item(std::string& out, bool first, const JsonStyle& style, int level) {
  if (!first) out += style.item_separator;
  if (!style.lines) return;
  out += '\n';
  for (int i = 0; i < level; ++i) out += style.indent;
}

void append_json_dict(std::string& out, const Dict& dict, const JsonStyle& style, size_t bytes_max,
                      int level) {
  if (dict.items.empty()) {
    out += "{}";
    return;
  }
  std::vector<const std::pair<Value, Value>*> items;
  for (const auto& item : dict.items) items.push_back(&item);
  if (style.sort_keys)
    std::ranges::stable_sort(items,
                             [](const auto* a, const auto* b) { return less(a->first, b->first); });
  out += '{';
  for (const auto* item : items) {
    begin_item(out, item == items[0], style, level + 1);
    out += json_key(item->first, style) + style.key_separator;
    append_json(out, item->second, style, bytes_max, level + 1);
  }
  if (style.lines) begin_item(out, true, style, level);
  out += '}';
}

}  // namespace

std::vector<Value> Arguments::bind(const std::string& what,
                                   std::initializer_list<const char*> names,
                                   size_t required) const {
  std::vector<Value> all(names.size());
  if (positional.size() > names.size())
    fail(fmt::format("{} takes at most {} arguments, got {}", what, names.size(),
                     positional.size()));
  std::ranges::copy(positional, all.begin());
  for (const auto& [name, value] : keywords) {
    const auto it = std::ranges::find(names, name, [](const char* n) { return std::string(n); });
    const auto at = size_t(it - names.begin());
    if (it == names.end()) fail(fmt::format("{} takes no argument {}", what, name));
    if (at < positional.size()) fail(fmt::format("{} got the argument {} twice", what, name));
    all[at] = value;
  }
  for (size_t i = positional.size(); i < required; ++i)
    if (all[i].is_undefined() &&
        std::ranges::none_of(keywords, [&](const auto& k) { return k.first == names.begin()[i]; }))
      fail(fmt::format("{} needs the argument {}", what, names.begin()[i]));
  return all;
}

int64_t integer_of(const Value& value, int64_t otherwise, const char* what) {
  if (value.is_undefined()) return otherwise;
  if (!value.is_integral())
    fail(fmt::format("{} is a {}, must be a whole number", what, type_name(value)));
  return value.as_integer();
}

std::string text_of(Evaluator& evaluator, const Value& value) {
  std::string text;
  append_str(text, value, evaluator.text_bytes_max());
  evaluator.step(int64_t(text.size() / 64) + 1);
  return text;
}

bool is_unsupported_global(std::string_view name) {
  static constexpr std::string_view kNames[] = {"cycler", "joiner", "lipsum"};
  return std::ranges::find(kNames, name) != std::end(kNames);
}

Value call_function(Evaluator& evaluator, Function function, const Arguments& arguments) {
  switch (function) {
    case Function::range:
      return make_range(evaluator, arguments);
    case Function::dict:
      return make_dict(dict_of(evaluator, arguments));
    case Function::namespace_:
      return make_namespace(evaluator, arguments);
    case Function::strftime_now:
      return strftime_now(evaluator, arguments);
    case Function::raise_exception:
      break;
  }
  const auto all = arguments.bind("raise_exception", {"message"}, 1);
  throw Failure{text_of(evaluator, all[0]), 0, /*unsupported=*/false, /*raised=*/true};
}

Value get_attribute(Evaluator& evaluator, const Value& object, const std::string& name) {
  if (const auto* undefined = std::get_if<Undefined>(&object.state))
    fail(undefined_message(*undefined));
  if (auto* const* loop = std::get_if<Loop*>(&object.state))
    return evaluator.loop_attribute(**loop, name);
  if (object.name_space() != nullptr) {
    const Value* value = find_in(*object.name_space(), name);
    return value != nullptr ? *value : Value(Undefined{&name, true});
  }
  if (has_method(object, name)) {
    evaluator.charge(sizeof(Method) + name.size());
    return Value(std::make_shared<const Method>(Method{object, name}));
  }
  if (const auto* dict = object.dict())
    if (const Value* value = dict->find(name)) return *value;
  return Value(Undefined{&name, true});
}

Value get_item(Evaluator& evaluator, const Value& object, const Value& key) {
  if (const auto* undefined = std::get_if<Undefined>(&object.state))
    fail(undefined_message(*undefined));
  if (const auto* dict = object.dict()) {
    if (const Value* value = dict->find(key)) return *value;
  }
  const auto* text = object.string();
  const auto* sequence = object.sequence();
  if (key.is_integral() && (text != nullptr || (sequence != nullptr && sequence->has_index()))) {
    if (text != nullptr) evaluator.step(weight_of(object));
    const int64_t size = text != nullptr ? length(*text) : int64_t(sequence->items.size());
    int64_t index = key.as_integer();
    if (index < 0) index += size;
    if (index < 0 || index >= size) return Value();
    if (text == nullptr) return sequence->items[size_t(index)];
    const size_t begin = byte_of(*text, index);
    size_t end = begin;
    next_character(*text, end);
    return evaluator.text(text->substr(begin, end - begin));
  }
  if (key.string() == nullptr) return Value();
  Value value = get_attribute(evaluator, object, *key.string());
  // The key may not live as long as the value.
  return value.is_undefined() ? Value() : value;
}

std::vector<Value> iterate(Evaluator& evaluator, const Value& value) {
  std::vector<Value> items;
  if (value.is_undefined()) return items;
  if (const auto* sequence = value.sequence()) {
    const bool taken = sequence->kind == Sequence::Kind::generator;
    const size_t from = taken ? std::exchange(sequence->next, sequence->items.size()) : 0;
    items.assign(sequence->items.begin() + long(from), sequence->items.end());
  } else if (const auto* dict = value.dict()) {
    for (const auto& [key, unused] : dict->items) items.push_back(key);
  } else if (const auto* text = value.string()) {
    for (size_t at = 0; at < text->size();) {
      const size_t begin = at;
      next_character(*text, at);
      items.push_back(evaluator.text(text->substr(begin, at - begin)));
    }
  } else {
    fail(fmt::format("a {} cannot be looped over", type_name(value)));
  }
  evaluator.step(int64_t(items.size()));
  evaluator.charge(items.size() * sizeof(Value));
  return items;
}

bool contains(Evaluator& evaluator, const Value& container, const Value& item) {
  if (container.is_undefined()) return false;
  if (const auto* text = container.string()) {
    if (item.string() == nullptr) fail(fmt::format("a {} cannot be in a text", type_name(item)));
    evaluator.step(weight_of(container));
    return find_text(*text, *item.string()) != std::string_view::npos;
  }
  if (const auto* dict = container.dict()) {
    evaluator.step(int64_t(item.string() != nullptr ? 1 : dict->items.size()));
    return dict->find(item) != nullptr;
  }
  const auto* sequence = container.sequence();
  if (sequence == nullptr) fail(fmt::format("nothing can be in a {}", type_name(container)));
  size_t at = sequence->kind == Sequence::Kind::generator ? sequence->next : 0;
  bool found = false;
  for (; at < sequence->items.size() && !found; ++at) {
    evaluator.step(std::min(weight_of(sequence->items[at]), weight_of(item)));
    found = equal(sequence->items[at], item);
  }
  if (sequence->kind == Sequence::Kind::generator) sequence->next = at;
  return found;
}

void append_json(std::string& out, const Value& value, const JsonStyle& style, size_t bytes_max,
                 int level) {
  const auto* sequence = value.sequence();
  if (value.is_none()) {
    out += "null";
  } else if (const auto* boolean = value.boolean()) {
    out += *boolean ? "true" : "false";
  } else if (const auto* integer = value.integer()) {
    out += std::to_string(*integer);
  } else if (const auto* number = value.number()) {
    out += std::isnan(*number)   ? "NaN"
           : std::isinf(*number) ? (*number < 0 ? "-Infinity" : "Infinity")
                                 : number_text(*number);
  } else if (const auto* text = value.string()) {
    append_json_text(out, *text, style.ascii);
  } else if (const auto* dict = value.dict()) {
    append_json_dict(out, *dict, style, bytes_max, level);
  } else if (sequence != nullptr && sequence->kind <= Sequence::Kind::tuple) {
    out += '[';
    for (const Value& item : sequence->items) {
      begin_item(out, &item == &sequence->items[0], style, level + 1);
      append_json(out, item, style, bytes_max, level + 1);
    }
    if (style.lines && !sequence->items.empty()) begin_item(out, true, style, level);
    out += ']';
  } else {
    fail(fmt::format("a value of type {} cannot be written as JSON", type_name(value)));
  }
  if (out.size() > bytes_max) fail(fmt::format("a text grows beyond {} bytes", bytes_max));
}

}  // namespace kivi::jinja
