// SPDX-License-Identifier: Apache-2.0
// The methods of strings, lists and dicts.
#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "engine/jinja/evaluator.h"
#include "engine/jinja/text.h"

namespace kivi::jinja {
namespace {

using SequenceKind = Sequence::Kind;

struct Entry {
  const char* name;
  Value (*call)(Evaluator&, const Value& self, const Arguments&);
};

const std::string& text_argument(const Value& value, const char* what) {
  if (value.string() == nullptr)
    fail(fmt::format("{} is a {}, must be a string", what, type_name(value)));
  return *value.string();
}

// None and left out are the same.
std::optional<std::string_view> optional_text(const Value& value, const char* what) {
  if (value.is_undefined() || value.is_none()) return std::nullopt;
  return text_argument(value, what);
}

template <std::string (*convert)(std::string_view)>
Value converted_text(Evaluator& e, const Value& self, const Arguments& arguments) {
  arguments.bind("the method", {});
  return e.text(convert(*self.string()));
}

template <CharacterClass wanted>
Value check(Evaluator&, const Value& self, const Arguments& arguments) {
  arguments.bind("the method", {});
  return Value::boolean(all_are(*self.string(), wanted));
}

template <Side side>
Value strip_(Evaluator& e, const Value& self, const Arguments& arguments) {
  const auto all = arguments.bind("strip", {"chars"});
  const auto characters = optional_text(all[0], "what strip takes away");
  if (characters) e.step(weight_of(self) * int64_t(characters->size() + 1));
  return e.text(std::string(strip(*self.string(), side, characters)));
}

Value texts(Evaluator& e, const std::vector<std::string_view>& parts,
            SequenceKind kind = SequenceKind::list) {
  std::vector<Value> items;
  items.reserve(parts.size());
  for (const std::string_view part : parts) items.push_back(e.text(std::string(part)));
  e.step(int64_t(items.size()));
  return e.list(kind, std::move(items));
}

template <bool from_right>
Value split_(Evaluator& e, const Value& self, const Arguments& arguments) {
  const auto all = arguments.bind("split", {"sep", "maxsplit"});
  const auto separator = optional_text(all[0], "the separator of split");
  const int64_t limit = integer_of(all[1], -1, "maxsplit");
  if (separator && separator->empty()) fail("the separator of split is empty");
  if (!from_right) return texts(e, split(*self.string(), separator, limit));
  if (separator) e.step(weight_of(self) * int64_t(separator->size()));
  return texts(e, rsplit(*self.string(), separator, limit));
}

Value splitlines(Evaluator& e, const Value& self, const Arguments& arguments) {
  const auto all = arguments.bind("splitlines", {"keepends"});
  return texts(e, split_lines(*self.string(), truthy(all[0])));
}

template <bool from_right>
Value partition(Evaluator& e, const Value& self, const Arguments& arguments) {
  const auto all = arguments.bind("partition", {"sep"}, 1);
  const std::string& separator = text_argument(all[0], "the separator of partition");
  if (separator.empty()) fail("the separator of partition is empty");
  const std::string_view text = *self.string();
  if (from_right) e.step(weight_of(self) * int64_t(separator.size()));
  const size_t at = from_right ? text.rfind(separator) : find_text(text, separator);
  if (at == std::string_view::npos)
    return from_right ? texts(e, {"", "", text}, SequenceKind::tuple)
                      : texts(e, {text, "", ""}, SequenceKind::tuple);
  return texts(e, {text.substr(0, at), separator, text.substr(at + separator.size())},
               SequenceKind::tuple);
}

// startswith and endswith: of a string, or of any of a tuple.
template <bool at_end>
Value has_affix(Evaluator&, const Value& self, const Arguments& arguments) {
  const auto all = arguments.bind(at_end ? "endswith" : "startswith", {"affix"}, 1);
  const std::string& text = *self.string();
  const auto has = [&](const Value& affix) {
    const std::string& wanted = text_argument(affix, "what a string begins or ends with");
    return at_end ? text.ends_with(wanted) : text.starts_with(wanted);
  };
  const auto* tuple = all[0].sequence();
  if (tuple == nullptr || tuple->kind != SequenceKind::tuple) return Value::boolean(has(all[0]));
  return Value::boolean(std::ranges::any_of(tuple->items, has));
}

template <bool at_end>
Value remove_affix(Evaluator& e, const Value& self, const Arguments& arguments) {
  const auto all = arguments.bind("removeprefix and removesuffix", {"affix"}, 1);
  const std::string& affix = text_argument(all[0], "what is to be removed");
  std::string text = *self.string();
  if (affix.empty() || !(at_end ? text.ends_with(affix) : text.starts_with(affix))) return self;
  text.erase(at_end ? text.size() - affix.size() : 0, affix.size());
  return e.text(std::move(text));
}

Value replace_text(Evaluator& e, const Value& self, const Arguments& arguments) {
  const auto all = arguments.bind("replace", {"old", "new", "count"}, 2);
  auto replaced = replace(*self.string(), text_argument(all[0], "what is replaced"),
                          text_argument(all[1], "the replacement"), integer_of(all[2], -1, "count"),
                          e.text_bytes_max());
  if (!replaced) fail(fmt::format("a text grows beyond {} bytes", e.text_bytes_max()));
  return e.text(std::move(*replaced));
}

// find, rfind, index, rindex: characters from the beginning.
template <bool from_right, bool must>
Value find_(Evaluator& e, const Value& self, const Arguments& arguments) {
  const auto all = arguments.bind("find", {"sub"}, 1);
  const std::string& wanted = text_argument(all[0], "what is looked for");
  const std::string_view text = *self.string();
  if (from_right) e.step(weight_of(self) * int64_t(wanted.size() + 1));
  const size_t at = from_right ? text.rfind(wanted) : find_text(text, wanted);
  if (at == std::string_view::npos && must) fail("the text that index looks for is not there");
  return Value::integer(at == std::string_view::npos ? -1 : length(text.substr(0, at)));
}

Value count_text(Evaluator&, const Value& self, const Arguments& arguments) {
  const auto all = arguments.bind("count", {"sub"}, 1);
  const std::string& wanted = text_argument(all[0], "what is counted");
  if (wanted.empty()) return Value::integer(length(*self.string()) + 1);
  int64_t count = 0;
  for (size_t at = 0; (at = find_text(*self.string(), wanted, at)) != std::string_view::npos;
       ++count)
    at += wanted.size();
  return Value::integer(count);
}

Value join_(Evaluator& e, const Value& self, const Arguments& arguments) {
  const auto all = arguments.bind("join", {"iterable"}, 1);
  std::string joined;
  bool begun = false;
  for (const Value& item : iterate(e, all[0])) {
    if (std::exchange(begun, true)) joined += *self.string();
    joined += text_argument(item, "an item to join");
    if (joined.size() > e.text_bytes_max()) break;  // and text() fails
  }
  return e.text(std::move(joined));
}

const Entry kTextMethods[] = {
    {"capitalize", converted_text<capitalize>},
    {"count", count_text},
    {"endswith", has_affix<true>},
    {"find", find_<false, false>},
    {"index", find_<false, true>},
    {"isalnum", check<CharacterClass::alnum>},
    {"isalpha", check<CharacterClass::alpha>},
    {"isdigit", check<CharacterClass::digit>},
    {"islower", check<CharacterClass::lower>},
    {"isspace", check<CharacterClass::space>},
    {"isupper", check<CharacterClass::upper>},
    {"join", join_},
    {"lower", converted_text<lower>},
    {"lstrip", strip_<Side::left>},
    {"partition", partition<false>},
    {"removeprefix", remove_affix<false>},
    {"removesuffix", remove_affix<true>},
    {"replace", replace_text},
    {"rfind", find_<true, false>},
    {"rindex", find_<true, true>},
    {"rpartition", partition<true>},
    {"rsplit", split_<true>},
    {"rstrip", strip_<Side::right>},
    {"split", split_<false>},
    {"splitlines", splitlines},
    {"startswith", has_affix<false>},
    {"strip", strip_<Side::both>},
    {"title", converted_text<title>},
    {"upper", converted_text<upper>},
};

Value keys(Evaluator& e, const Value& self, const Arguments& arguments) {
  arguments.bind("keys", {});
  std::vector<Value> all;
  for (const auto& item : self.dict()->items) all.push_back(item.first);
  e.step(int64_t(all.size()));
  return e.list(SequenceKind::keys, std::move(all));
}

Value values(Evaluator& e, const Value& self, const Arguments& arguments) {
  arguments.bind("values", {});
  std::vector<Value> all;
  for (const auto& item : self.dict()->items) all.push_back(item.second);
  e.step(int64_t(all.size()));
  return e.list(SequenceKind::values, std::move(all));
}

Value items(Evaluator& e, const Value& self, const Arguments& arguments) {
  arguments.bind("items", {});
  std::vector<Value> all;
  for (const auto& [key, value] : self.dict()->items)
    all.push_back(e.list(SequenceKind::tuple, {key, value}));
  e.step(int64_t(all.size()));
  return e.list(SequenceKind::items, std::move(all));
}

Value get(Evaluator&, const Value& self, const Arguments& arguments) {
  const auto all = arguments.bind("get", {"key", "default"}, 1);
  if (const Value* value = self.dict()->find(all[0])) return *value;
  return arguments.positional.size() + arguments.keywords.size() > 1 ? all[1] : Value::none();
}

Value copy(Evaluator& e, const Value& self, const Arguments& arguments) {
  arguments.bind("copy", {});
  e.step();
  return self;  // nothing can change either of them
}

const Entry kDictMethods[] = {
    {"copy", copy}, {"get", get}, {"items", items}, {"keys", keys}, {"values", values}};

Value count_items(Evaluator& e, const Value& self, const Arguments& arguments) {
  const auto all = arguments.bind("count", {"value"}, 1);
  int64_t count = 0;
  for (const Value& item : self.sequence()->items) count += e.compare("==", item, all[0]) ? 1 : 0;
  return Value::integer(count);
}

Value index_of(Evaluator& e, const Value& self, const Arguments& arguments) {
  const auto all = arguments.bind("index", {"value"}, 1);
  const auto& items = self.sequence()->items;
  for (size_t i = 0; i < items.size(); ++i)
    if (e.compare("==", items[i], all[0])) return Value::integer(int64_t(i));
  fail("the value that index looks for is not there");
}

const Entry kListMethods[] = {{"copy", copy}, {"count", count_items}, {"index", index_of}};

Value cycle(Evaluator&, const Value& self, const Arguments& arguments) {
  const auto& items = arguments.positional;
  if (items.empty() || !arguments.keywords.empty()) fail("cycle needs values to go through");
  const Loop& loop = *std::get<Loop*>(self.state);
  return items[size_t(std::max<int64_t>(0, loop.index0)) % items.size()];
}

Value changed(Evaluator& e, const Value& self, const Arguments& arguments) {
  Loop& loop = *std::get<Loop*>(self.state);
  Value now = e.list(SequenceKind::tuple, arguments.positional);
  if (e.compare("==", loop.last_changed, now)) return Value::boolean(false);
  loop.last_changed = std::move(now);
  return Value::boolean(true);
}

const Entry kLoopMethods[] = {{"changed", changed}, {"cycle", cycle}};

std::span<const Entry> methods_of(const Value& self) {
  if (self.string() != nullptr) return kTextMethods;
  if (self.dict() != nullptr) return kDictMethods;
  if (std::holds_alternative<Loop*>(self.state)) return kLoopMethods;
  const auto* sequence = self.sequence();
  if (sequence != nullptr && sequence->has_index()) return kListMethods;
  return {};
}

// Methods that change their object.
bool is_mutator(const Value& self, std::string_view name) {
  static constexpr std::string_view kList[] = {"append", "clear",  "extend",  "insert",
                                               "pop",    "remove", "reverse", "sort"};
  static constexpr std::string_view kDict[] = {"clear", "pop", "popitem", "setdefault", "update"};
  if (self.dict() != nullptr) return std::ranges::find(kDict, name) != std::end(kDict);
  const auto* sequence = self.sequence();
  return sequence != nullptr && sequence->kind == SequenceKind::list &&
         std::ranges::find(kList, name) != std::end(kList);
}

const Entry* find_method(const Value& self, std::string_view name) {
  const auto entries = methods_of(self);
  const auto it =
      std::ranges::find(entries, name, [](const Entry& m) { return std::string_view(m.name); });
  return it == entries.end() ? nullptr : &*it;
}

}  // namespace

bool is_unsupported_method(std::string_view name) {
  static constexpr std::string_view kNames[] = {
      "casefold", "center",           "encode",     "expandtabs", "format",   "format_map",
      "fromkeys", "isascii",          "isdecimal",  "isnumeric",  "istitle",  "isidentifier",
      "ljust",    "isprintable",      "maketrans",  "rjust",      "swapcase", "translate",
      "zfill",    "as_integer_ratio", "bit_length", "is_integer", "hex",      "conjugate"};
  return std::ranges::find(kNames, name) != std::end(kNames);
}

bool has_method(const Value& self, std::string_view name) {
  return find_method(self, name) != nullptr || is_mutator(self, name);
}

Value call_method(Evaluator& evaluator, const Value& self, const std::string& name,
                  const Arguments& arguments) {
  const Entry* method = find_method(self, name);
  if (method == nullptr)
    fail(fmt::format("the method {} would change a {}, which a template must not", name,
                     type_name(self)));
  if (self.string() != nullptr) evaluator.step(weight_of(self));
  return method->call(evaluator, self, arguments);
}

}  // namespace kivi::jinja
