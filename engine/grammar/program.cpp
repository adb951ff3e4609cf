// SPDX-License-Identifier: Apache-2.0
#include "engine/grammar/program.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <utility>

#include "engine/grammar/work_limit.h"

namespace kivi::grammar {
namespace {

constexpr int kInlineSize = 64;     // bytes and calls of a rule that is put where it is called
constexpr int kTooLarge = 1 << 20;  // a size that is never put anywhere

// Resolves what the small rules are, and rules that begin with themselves.
class Rewriter {
 public:
  explicit Rewriter(Grammar& grammar)
      : grammar_(grammar), size_(grammar.rules.size(), -1), open_(grammar.rules.size(), false) {}

  void resolve_left_recursion() {
    for (size_t r = 0; r < grammar_.rules.size(); ++r) rewrite(int(r));
  }

  Expr inlined(int rule) {
    return rule_size(rule) <= kInlineSize ? grammar_.rules[size_t(rule)].body : nullptr;
  }

 private:
  // rule ::= rule tail | other  becomes  rule ::= other tail*.
  void rewrite(int rule) {
    const Expr body = grammar_.rules[size_t(rule)].body;
    if (body == nullptr || body->kind != Expression::Kind::choice) return;
    std::vector<Expr> tails, others;
    for (const Expr& part : body->parts) {
      const bool recursive = part->kind == Expression::Kind::sequence &&
                             part->parts.front()->kind == Expression::Kind::call &&
                             part->parts.front()->rule == rule;
      if (recursive)
        tails.push_back(sequence({part->parts.begin() + 1, part->parts.end()}));
      else
        others.push_back(part);
    }
    if (tails.empty()) return;
    grammar_.rules[size_t(rule)].body =
        sequence({choice(std::move(others)), repeat(choice(std::move(tails)), 0, -1)});
  }

  int rule_size(int rule) {
    int& known = size_[size_t(rule)];
    if (known >= 0) return known;
    if (open_[size_t(rule)]) return kTooLarge;  // recursive
    open_[size_t(rule)] = true;
    const Rule& r = grammar_.rules[size_t(rule)];
    const int size = r.keep_apart || rule == grammar_.root ? kTooLarge : size_of(r.body);
    open_[size_t(rule)] = false;
    return size_[size_t(rule)] = size;
  }

  int size_of(const Expr& e) {
    if (e == nullptr || depth_ > kExpressionDepthMax) return kTooLarge;
    ++depth_;
    int64_t size = 0;
    switch (e->kind) {
      case Expression::Kind::bytes:
        size = int64_t(e->bytes.size());
        break;
      case Expression::Kind::byte_range:
        size = 1;
        break;
      case Expression::Kind::sequence:
      case Expression::Kind::choice:
        for (const Expr& part : e->parts) size += size_of(part);
        break;
      case Expression::Kind::repeat:
        size = int64_t(size_of(e->parts.front())) * std::max({1, e->least, e->most});
        break;
      case Expression::Kind::call:
        size = rule_size(e->rule);
        break;
      case Expression::Kind::automaton:
        size = e->automaton->states();
        break;
      case Expression::Kind::listing:
        for (const ListItem& item : e->items) size += size_of(item.expression);
        size += (e->separator ? size_of(e->separator) : 0) + (e->more ? size_of(e->more) : 0);
        break;
    }
    --depth_;
    return int(std::min<int64_t>(size, kTooLarge));
  }

  Grammar& grammar_;
  std::vector<int> size_;
  std::vector<bool> open_;
  int depth_ = 0;  // of the expressions that are open, through the rules that they call
};

// The rules that call each rule.
std::vector<std::vector<int>> callers_of(const std::vector<Automaton>& automata) {
  std::vector<std::vector<int>> callers(automata.size());
  for (size_t r = 0; r < automata.size(); ++r)
    for (const auto& calls : automata[r].calls)
      for (const Automaton::Call& c : calls) {
        std::vector<int>& of = callers[size_t(c.rule)];
        if (of.empty() || of.back() != int(r)) of.push_back(int(r));
      }
  return callers;
}

// Finds the rules that have a property. Whether a rule has it may depend on the rules that it
// calls, so has(rule) is called for each rule, and again when a rule that it calls was found to
// have it.
template <class Has>
void find_rules(const std::vector<Automaton>& automata, std::vector<uint8_t>& found,
                const Has& has) {
  const std::vector<std::vector<int>> callers = callers_of(automata);
  std::vector<int> work;
  std::vector<uint8_t> waits(automata.size(), 1);
  for (size_t r = 0; r < automata.size(); ++r) work.push_back(int(r));
  while (!work.empty()) {
    const auto rule = size_t(work.back());
    work.pop_back();
    waits[rule] = 0;
    if (found[rule] || !has(rule)) continue;
    found[rule] = 1;
    for (const int caller : callers[rule])
      if (!found[size_t(caller)] && !std::exchange(waits[size_t(caller)], 1))
        work.push_back(caller);
  }
}

std::vector<uint8_t> reachable_rules(const std::vector<Automaton>& automata, int root) {
  std::vector<uint8_t> reached(automata.size(), 0);
  std::vector<int> work{root};
  reached[size_t(root)] = 1;
  while (!work.empty()) {
    const int rule = work.back();
    work.pop_back();
    for (const auto& calls : automata[size_t(rule)].calls)
      for (const Automaton::Call& c : calls)
        if (!std::exchange(reached[size_t(c.rule)], 1)) work.push_back(c.rule);
  }
  return reached;
}

// Removes all that cannot end.
void trim_all(std::vector<Automaton>& automata, int root) {
  std::vector<uint8_t> alive(automata.size(), 0);
  find_rules(automata, alive, [&](size_t r) {
    spend(10 + int64_t(automata[r].next.size() / 8));
    Automaton copy = automata[r];
    return trim(copy, [&](int rule) { return alive[size_t(rule)] != 0; });
  });
  if (!alive[size_t(root)]) fail("no text matches it");
  for (Automaton& a : automata) trim(a, [&](int rule) { return alive[size_t(rule)] != 0; });
}

bool nothing_follows(const Automaton& a, int32_t state) {
  return a.final[size_t(state)] && !a.has_bytes(state) && a.calls[size_t(state)].empty();
}

}  // namespace

Program::Program(Grammar grammar) {
  Rewriter rewriter(grammar);
  rewriter.resolve_left_recursion();
  std::vector<Automaton> automata(grammar.rules.size());
  // Only what is called: the small rules are built where they stand.
  std::vector<uint8_t> built(grammar.rules.size(), 0);
  std::vector<int> work{grammar.root};
  built[size_t(grammar.root)] = 1;
  int64_t states = 0;
  while (!work.empty()) {
    const int rule = work.back();
    work.pop_back();
    Automaton& a = automata[size_t(rule)];
    a = build_automaton(grammar.rules[size_t(rule)].body,
                        [&](int called) { return rewriter.inlined(called); });
    if ((states += a.states()) > kMaxStates)
      fail(
          fmt::format("it needs automata of more than {} states: lower its bounds of lengths and "
                      "counts",
                      kMaxStates));
    for (const auto& calls : a.calls)
      for (const Automaton::Call& c : calls)
        if (!std::exchange(built[size_t(c.rule)], 1)) work.push_back(c.rule);
  }
  for (size_t r = 0; r < automata.size(); ++r)
    if (!built[r]) automata[r] = build_automaton(nullptr);
  trim_all(automata, grammar.root);
  check_left_recursion(grammar, automata);

  const std::vector<uint8_t> reached = reachable_rules(automata, grammar.root);
  std::vector<uint8_t> called(automata.size(), 0);
  for (const Automaton& a : automata)
    for (const auto& calls : a.calls)
      for (const Automaton::Call& c : calls) called[size_t(c.rule)] = 1;
  std::vector<int32_t> first(automata.size(), -1);
  int32_t count = 0;
  for (size_t r = 0; r < automata.size(); ++r)
    if (reached[r]) first[r] = count, count += automata[r].states();
  for (size_t r = 0; r < automata.size(); ++r) {
    if (!reached[r]) continue;
    const Automaton& a = automata[r];
    const auto row = int32_t(next_.size());
    for (const int32_t to : a.next) next_.push_back(to < 0 ? -1 : to + first[r]);
    classes_.push_back(a.class_of);
    for (int32_t s = 0; s < a.states(); ++s) {
      state_.push_back({row + s * a.class_count, int32_t(classes_.size()) - 1, int32_t(r),
                        a.final[size_t(s)] != 0, a.has_bytes(s), nothing_follows(a, s),
                        called[r] != 0, !a.calls[size_t(s)].empty()});
      std::vector<Call>& calls = calls_.emplace_back();
      for (const Automaton::Call& c : a.calls[size_t(s)])
        calls.push_back({first[size_t(c.rule)], c.next + first[r]});
    }
  }
  start_ = first[size_t(grammar.root)];
  rules_ = int(automata.size());
}

// A rule that calls itself before it has taken a byte would push return addresses without end,
// unless nothing is left to do behind each of the calls.
void Program::check_left_recursion(const Grammar& grammar,
                                   const std::vector<Automaton>& automata) const {
  const size_t n = automata.size();
  std::vector<uint8_t> nullable(n, 0);
  // What a rule may be in before it takes a byte.
  const auto begin_states = [&](size_t r) {
    std::vector<int32_t> states{0};
    std::vector<uint8_t> seen(size_t(automata[r].states()), 0);
    seen[0] = 1;
    for (size_t i = 0; i < states.size(); ++i)
      for (const Automaton::Call& c : automata[r].calls[size_t(states[i])])
        if (nullable[size_t(c.rule)] && !std::exchange(seen[size_t(c.next)], 1))
          states.push_back(c.next);
    spend(1 + int64_t(states.size()));
    return states;
  };
  find_rules(automata, nullable, [&](size_t r) {
    return std::ranges::any_of(begin_states(r),
                               [&](int32_t s) { return automata[r].final[size_t(s)] != 0; });
  });
  struct Edge {
    int32_t to;
    bool pushes;
  };
  std::vector<std::vector<Edge>> edges(n);
  for (size_t r = 0; r < n; ++r)
    for (const int32_t s : begin_states(r))
      for (const Automaton::Call& c : automata[r].calls[size_t(s)])
        edges[r].push_back({c.rule, !nothing_follows(automata[r], c.next)});
  // Looks for a way back from the target of each call that pushes.
  for (size_t r = 0; r < n; ++r)
    for (const Edge& e : edges[r]) {
      if (!e.pushes) continue;
      std::vector<uint8_t> seen(n, 0);
      std::vector<int32_t> work{e.to};
      seen[size_t(e.to)] = 1;
      while (!work.empty()) {
        const int32_t at = work.back();
        work.pop_back();
        spend(1 + int64_t(edges[size_t(at)].size()));
        if (size_t(at) == r)
          fail(
              fmt::format("the rule {} begins with itself (left recursion): write it as a "
                          "repetition",
                          grammar.rules[r].name));
        for (const Edge& f : edges[size_t(at)])
          if (!std::exchange(seen[size_t(f.to)], 1)) work.push_back(f.to);
      }
    }
}

}  // namespace kivi::grammar
