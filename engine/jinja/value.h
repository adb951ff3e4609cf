// SPDX-License-Identifier: Apache-2.0
// Value: what a template computes with. Its kinds and their behavior are Python's, because chat
// templates are written for Jinja in Python. Values are immutable but for namespaces, so that they
// can be shared; namespaces, macros and loops belong to the Evaluator of the rendering, and values
// that point to them live no longer than it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

namespace kivi::jinja {

// What ends the reading or the rendering of a template. It never leaves the classes of
// engine/serving/chat_template.h and engine/serving/chat_prompt.h.
struct Failure {
  std::string message;
  int line = 0;  // of the template, from 1; 0: not known yet
  bool unsupported = false;
  bool raised = false;  // by the template itself, with raise_exception
};
[[noreturn]] void fail(std::string message, int line = 0);
[[noreturn]] void fail_unsupported(const std::string& what, int line);

class Value;
struct Sequence;
struct Dict;
struct Namespace;
struct Macro;
struct Loop;
struct Method;

// The functions that every template sees.
enum class Function { range, dict, namespace_, raise_exception, strftime_now };

struct Undefined {
  // What was not found: a variable or an attribute; null: said by no name. Lives in the template.
  const std::string* name = nullptr;
  bool attribute = false;
};
struct None {};

using String = std::shared_ptr<const std::string>;

class Value {
 public:
  using State =
      std::variant<Undefined, None, bool, int64_t, double, String, std::shared_ptr<const Sequence>,
                   std::shared_ptr<const Dict>, Namespace*, const Macro*, Loop*,
                   std::shared_ptr<const Method>, Function>;

  Value() = default;  // undefined
  template <class T>
  requires std::is_constructible_v<State, T> &&(!std::is_convertible_v<T, std::string_view>)&&(
      !std::is_same_v<
          std::remove_cvref_t<T>,
          Value>)&&(!std::is_same_v<std::remove_cvref_t<T>,
                                    std::string>)&&(!std::
                                                        is_integral_v<std::remove_cvref_t<
                                                            T>>)explicit Value(T value)
      : state(std::move(value)) {}
  explicit Value(std::string text) : state(std::make_shared<const std::string>(std::move(text))) {}
  static Value none() { return Value(None{}); }
  static Value boolean(bool value) { return Value(State(value), 0); }
  static Value integer(int64_t value) { return Value(State(value), 0); }

  bool is_undefined() const { return std::holds_alternative<Undefined>(state); }
  bool is_none() const { return std::holds_alternative<None>(state); }
  const bool* boolean() const { return std::get_if<bool>(&state); }
  const int64_t* integer() const { return std::get_if<int64_t>(&state); }
  const double* number() const { return std::get_if<double>(&state); }
  // Null where it is no string.
  const std::string* string() const {
    const auto* p = std::get_if<String>(&state);
    return p == nullptr ? nullptr : p->get();
  }
  const Sequence* sequence() const {
    const auto* p = std::get_if<std::shared_ptr<const Sequence>>(&state);
    return p == nullptr ? nullptr : p->get();
  }
  const Dict* dict() const {
    const auto* p = std::get_if<std::shared_ptr<const Dict>>(&state);
    return p == nullptr ? nullptr : p->get();
  }
  Namespace* name_space() const {
    const auto* p = std::get_if<Namespace*>(&state);
    return p == nullptr ? nullptr : *p;
  }
  // True and False count as 1 and 0, as in Python.
  bool is_integral() const { return integer() != nullptr || boolean() != nullptr; }
  bool is_numeric() const { return is_integral() || number() != nullptr; }
  // Of an integral value.
  int64_t as_integer() const { return boolean() != nullptr ? int64_t(*boolean()) : *integer(); }
  // Of a numeric value.
  double as_number() const { return number() != nullptr ? *number() : double(as_integer()); }

  State state;

 private:
  Value(State s, int) : state(std::move(s)) {}
};

// Everything with an order: what Python has different types for.
struct Sequence {
  enum class Kind { list, tuple, range, generator, keys, values, items };
  Kind kind = Kind::list;
  std::vector<Value> items;
  int depth = 1;            // of nesting, bounded by kMaxValueDepth
  int64_t weight = 1;       // see weight_of
  mutable size_t next = 0;  // generators: what comes before it has been taken
  bool has_length() const { return kind != Kind::generator; }
  bool has_index() const { return kind <= Kind::range; }
};

struct Dict {
  std::vector<std::pair<Value, Value>> items;  // in the order of insertion
  int depth = 1;
  int64_t weight = 1;

  // Null where there is no such key.
  const Value* find(const Value& key) const;
  const Value* find(std::string_view key) const;
  void set(Value key, Value value);

 private:
  // Where the key stands; items.size(): nowhere.
  size_t place(const Value& key) const;
  // Of the string keys, once there are many.
  std::unordered_map<std::string_view, size_t> index_;
};

struct Namespace {
  std::vector<std::pair<std::string, Value>> items;
};

// A method of a string, list or dict, taken but not called yet.
struct Method {
  Value self;
  std::string name;
};

// Nothing nests deeper: recursion over a value is bounded by it.
inline constexpr int kMaxValueDepth = 100;

// They fail where the nesting would be too deep.
Value make_sequence(Sequence::Kind kind, std::vector<Value> items);
inline Value make_list(std::vector<Value> items) {
  return make_sequence(Sequence::Kind::list, std::move(items));
}
inline Value make_tuple(std::vector<Value> items) {
  return make_sequence(Sequence::Kind::tuple, std::move(items));
}
Value make_dict(Dict dict);

// Steps that looking at all of a value takes: values in it (what stands in it twice counts twice)
// and 64 bytes of text each.
int64_t weight_of(const Value& value);

// "str", "list", ... for errors.
const char* type_name(const Value& value);
// "'x' is undefined", for what an undefined value must not be used for.
std::string undefined_message(const Undefined& undefined);

bool truthy(const Value& value);
// Python's ==.
bool equal(const Value& a, const Value& b);
// Python's <; fails for what has no order.
bool less(const Value& a, const Value& b);

// Appends str(value), repr(value): the second quotes strings. Fails where `out` would grow beyond
// `bytes_max`.
void append_str(std::string& out, const Value& value, size_t bytes_max);
void append_repr(std::string& out, const Value& value, size_t bytes_max);

}  // namespace kivi::jinja
