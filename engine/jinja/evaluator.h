// SPDX-License-Identifier: Apache-2.0
// The evaluator: runs a template's tree over variables. What it costs is bounded, whatever the
// template: steps, bytes of values, bytes of output, depth of recursion.
#pragma once

#include <ctime>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/jinja/ast.h"
#include "engine/jinja/builtins.h"
#include "engine/jinja/value.h"

namespace kivi::jinja {

struct Limits {
  int64_t steps = 0;      // nodes evaluated, items looked at
  int64_t bytes = 0;      // of values made, all together
  size_t text_bytes = 0;  // of one text, and of the output
};

struct Scope {
  Scope* parent = nullptr;
  std::vector<std::pair<int, Value>> variables = {};
  bool captured = false;  // a macro refers to it
};

struct Macro {
  const std::string* name;
  const Signature* signature;
  const Block* body;
  Scope* scope;  // where it was defined
};

// `loop` of a for statement, and where it stands.
struct Loop {
  std::vector<Value> items;
  size_t next = 0;  // of `items`
  const Statement* statement = nullptr;
  Scope* scope = nullptr;  // around the loop
  int64_t index0 = -1;
  int64_t length = -1;     // -1: not known yet
  bool has_after = false;  // `after` is the next item
  bool tested = false;     // `items` have passed the loop's test
  Value after, current, before;
  Value last_changed;
};

class Evaluator {
 public:
  Evaluator(const Template& source, const Limits& limits, std::time_t now)
      : template_(source), limits_(limits), now_(now) {}
  Evaluator(const Evaluator&) = delete;
  Evaluator& operator=(const Evaluator&) = delete;

  // Once. Fails with the line at fault.
  std::string run(const std::vector<std::pair<std::string, Value>>& variables);

  // ---- for builtins ----
  void step(int64_t count = 1);
  // Accounts for bytes that a value takes; fails beyond the limit.
  void charge(size_t bytes);
  Value text(std::string text);  // a string value, accounted for
  Value list(Sequence::Kind kind, std::vector<Value> items);
  size_t text_bytes_max() const { return limits_.text_bytes; }
  std::time_t now() const { return now_; }
  Namespace* make_namespace();
  Value call(const Value& callee, Arguments arguments);
  Value loop_attribute(Loop& loop, const std::string& name);
  Value add(const Value& left, const Value& right);  // left + right
  // == != < <= > >= in, "not in".
  bool compare(const std::string& comparison, const Value& left, const Value& right);

 private:
  enum class Flow { on, break_, continue_ };

  // Counts the levels of recursion while it lives.
  class Depth {
   public:
    explicit Depth(Evaluator& evaluator);
    ~Depth() { --evaluator_.depth_; }
    Depth(const Depth&) = delete;
    Depth& operator=(const Depth&) = delete;

   private:
    Evaluator& evaluator_;
  };
  class OwnScope;

  Flow run_block(const Block& block, Scope& scope);
  Flow run_statement(const Statement& statement, Scope& scope);
  Flow run_if(const Statement& statement, Scope& scope);
  Flow run_for(const Statement& statement, Scope& scope);
  void run_set(const Statement& statement, Value value, Scope& scope);
  // What a block writes.
  Value capture(const Block& block, Scope& scope, Flow& flow);
  void write(const Value& value);

  Value evaluate(const Expression& expression, Scope& scope);
  Value evaluate_list(const Expression& expression, Scope& scope);
  Value evaluate_dict(const Expression& expression, Scope& scope);
  Value evaluate_item(const Expression& expression, Scope& scope);
  Value evaluate_sign(const Expression& expression, Scope& scope);
  Value evaluate_slice(const Expression& expression, Scope& scope);
  Value evaluate_call(const Expression& expression, Scope& scope, Value* caller = nullptr);
  Value evaluate_filter(const Expression& expression, Scope& scope, const Value* input = nullptr);
  Value evaluate_binary(const Expression& expression, Scope& scope);
  Value evaluate_concat(const Expression& expression, Scope& scope);
  bool evaluate_compare(const Expression& expression, Scope& scope);
  Arguments evaluate_arguments(const Expression& expression, Scope& scope);

  Value multiply(const Value& left, const Value& right);
  Value call_macro(const Macro& macro, Arguments arguments);
  Value look_up(int name, Scope& scope) const;
  static void store(int name, Value value, Scope& scope);
  void assign(const Expression& target, Value value, Scope& scope);
  const Macro* make_macro(const std::string& name, const Signature& signature, const Block& body,
                          Scope& scope);
  int number_of(const char* name) const;  // -1: the template does not have it

  bool pull(Loop& loop, Value& item);  // the next item that passes the loop's test
  bool peek(Loop& loop);

  const Template& template_;
  const Limits limits_;
  const std::time_t now_;
  int64_t steps_ = 0, bytes_ = 0;
  int depth_ = 0;
  std::string output_;
  std::string* out_ = &output_;  // what is being written

  // Everything that values point to without owning it.
  std::vector<std::unique_ptr<Namespace>> namespaces_;
  std::vector<std::unique_ptr<Macro>> macros_;
  std::vector<std::unique_ptr<Loop>> loops_;
  std::vector<std::unique_ptr<Scope>> scopes_;  // those that a macro refers to
};

}  // namespace kivi::jinja
