// SPDX-License-Identifier: Apache-2.0
// SchemaCompiler makes a grammar of one JSON Schema. Included by json_schema.cpp and its two
// neighbors alone: schema_scalars.cpp has strings and numbers, schema_containers.cpp has objects
// and arrays.
#pragma once

#include <initializer_list>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/grammar/automaton.h"
#include "engine/grammar/json_rules.h"
#include "engine/grammar/regular.h"
#include "engine/grammar/schema_merge.h"

namespace kivi::grammar {

class SchemaCompiler {
 public:
  explicit SchemaCompiler(const Schema& root) : root_(root), rules_(grammar_) {}

  // Throws Failure, naming the keyword and its path.
  Grammar run();

 private:
  class Depth;  // counts how deep schemas and references nest

  // Null where no value fits.
  Expr expression(const Schema& schema, const std::string& path);
  Expr of_types(const Schema& schema, const std::string& path);
  Expr of_type(const std::string& type, const Schema& schema, const std::string& path);
  Expr options(const Schema& schema, const char* keyword, const std::string& path);
  Expr values(const Schema& values, const Schema& schema, const std::string& path);
  Expr reference(const std::string& pointer, const std::string& path);
  Expr string(const Schema& schema, const std::string& path);
  Expr number(const Schema& schema, const std::string& path, bool integers);
  // Not as a rule. Sets `integers` where no other number fits.
  static Expr number_inside(const Schema& schema, const std::string& path, bool& integers);
  Expr object(const Schema& schema, const std::string& path);
  Expr array(const Schema& schema, const std::string& path);

  const Schema& find(const std::string& pointer, const std::string& path) const;
  // Without $ref and allOf at the top.
  Schema flat(const Schema& schema, const std::string& path);
  // The inside of a string that has bounds; none where it has none.
  std::shared_ptr<Automaton> string_inside(const Schema& schema, const std::string& path);
  // `name`: a rule's name. What is used more than once is better a rule of its own.
  Expr as_rule(Expr e, std::string name);
  // A member whose key is none of `names`; null where there may be none.
  Expr more_properties(const Schema& schema, const std::vector<std::string>& names,
                       const std::string& path);
  // What the keys that are none of `names` may be, before patternProperties. Null: nothing.
  std::shared_ptr<Automaton> free_keys(const Schema& schema, const std::vector<std::string>& names,
                                       const std::string& path);
  // Appends a member for the keys that `key` accepts, where there are any.
  void add_member(std::vector<Expr>& members, std::shared_ptr<Automaton> key, const Schema& value,
                  const std::string& path);
  // Appends the members of patternProperties. Returns `keys` without what their patterns fit.
  std::shared_ptr<Automaton> add_patterns(std::vector<Expr>& members,
                                          std::shared_ptr<Automaton> keys, const Schema& patterns,
                                          const std::vector<std::string>& names,
                                          const std::string& path);

  const Schema& root_;
  Grammar grammar_;
  JsonRules rules_;
  std::map<std::string, int> references_;
  int depth_ = 0;
};

// Returns true if no keyword of `schema` says anything about values.
bool without_constraints(const Schema& schema);
Schema without(const Schema& schema, std::initializer_list<const char*> keywords);
// Reads a bound of a length or of a count.
int count_of(const Schema& schema, const char* name, int otherwise, const std::string& path);

// The inside of a JSON string that matches `pattern`. A failure names `path`.
Expr schema_regex(const std::string& pattern, RegexAnchors anchors, const std::string& path);

// Every character: what a string without bounds holds.
inline const CharRanges kAnyChar{{0, kLastChar}};

inline std::shared_ptr<Automaton> shared(Automaton a) {
  return std::make_shared<Automaton>(std::move(a));
}

}  // namespace kivi::grammar
