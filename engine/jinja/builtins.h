// SPDX-License-Identifier: Apache-2.0
// Filters, tests, methods and functions: what Jinja and Python give to templates.
#pragma once

#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/jinja/value.h"

namespace kivi::jinja {

class Evaluator;

// The arguments of a call, by place and by name.
struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> keywords;

  // In the order of `names`, the first `required` of which must be there; undefined where one is
  // not. Fails for what has no place. `what` is called so, for the message.
  std::vector<Value> bind(const std::string& what, std::initializer_list<const char*> names,
                          size_t required = 0) const;
};

struct Filter {
  const char* name;
  Value (*apply)(Evaluator&, const Value& input, const Arguments&);
};
struct Test {
  const char* name;
  bool (*holds)(Evaluator&, const Value& input, const Arguments&);
};

// Null where there is none of this name.
const Filter* find_filter(std::string_view name);
const Test* find_test(std::string_view name);

// Methods that Python's strings, lists, dicts and numbers have, and these have not.
bool is_unsupported_method(std::string_view name);
// Functions of Jinja that are not here.
bool is_unsupported_global(std::string_view name);

// Returns true if a value of this kind has the method. Methods that would change the value count
// too: they fail when called, as in Transformers' sandbox.
bool has_method(const Value& self, std::string_view name);
Value call_method(Evaluator& evaluator, const Value& self, const std::string& name,
                  const Arguments& arguments);
Value call_function(Evaluator& evaluator, Function function, const Arguments& arguments);

// x.name and x[key]; undefined where there is nothing.
Value get_attribute(Evaluator& evaluator, const Value& object, const std::string& name);
Value get_item(Evaluator& evaluator, const Value& object, const Value& key);
// The items of what can be looped over: those of a string are its characters, of a dict its keys.
// A generator's are taken.
std::vector<Value> iterate(Evaluator& evaluator, const Value& value);
bool contains(Evaluator& evaluator, const Value& container, const Value& item);

// json.dumps.
struct JsonStyle {
  bool ascii = false, sort_keys = false;
  bool lines = false;  // one item a line, indented by `indent`
  std::string indent, item_separator = ", ", key_separator = ": ";
};
void append_json(std::string& out, const Value& value, const JsonStyle& style, size_t bytes_max,
                 int level = 0);

// The whole number of an argument, or the default where it is undefined.
int64_t integer_of(const Value& value, int64_t otherwise, const char* what);
std::string text_of(Evaluator& evaluator, const Value& value);  // str(value), accounted for

}  // namespace kivi::jinja
