// SPDX-License-Identifier: Apache-2.0
#include "engine/grammar/automaton.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <unordered_map>
#include <utility>

#include "engine/grammar/work_limit.h"

namespace kivi::grammar {
namespace {

[[noreturn]] void too_large() {
  fail(
      fmt::format("it needs an automaton of more than {} states: lower its bounds of lengths "
                  "and counts",
                  kMaxStates));
}

struct Nfa {
  struct Edge {
    uint8_t first, last;
    int32_t to;
  };
  struct State {
    std::vector<Edge> edges;
    std::vector<int32_t> empty;
    std::vector<Automaton::Call> calls;
  };
  std::vector<State> states;

  int32_t add() {
    if (int(states.size()) >= kMaxStates * 4) too_large();
    states.emplace_back();
    return int32_t(states.size()) - 1;
  }
  void link(int32_t from, int32_t to) { states[size_t(from)].empty.push_back(to); }
};

// Adds expressions between states (Thompson's construction).
class NfaBuilder {
 public:
  explicit NfaBuilder(const std::function<Expr(int)>& inlined) : inlined_(inlined) {}

  Nfa build(const Expr& e) {
    const int32_t start = nfa_.add();
    end_ = nfa_.add();
    if (e != nullptr) nfa_.link(add(*e, start), end_);
    return std::move(nfa_);
  }
  int32_t end() const { return end_; }

 private:
  // Returns the state behind `e`, which begins at `from`.
  int32_t add(const Expression& e, int32_t from) {
    // An expression that matches the empty text may add no state, however often it is repeated.
    spend(1);
    // The rule's own expression and the rules that are put into it are each within the limit.
    if (++depth_ > 2 * kExpressionDepthMax) fail("its rules are nested too deep: simplify it");
    const int32_t to = add_kind(e, from);
    --depth_;
    return to;
  }

  int32_t add_kind(const Expression& e, int32_t from) {
    switch (e.kind) {
      case Expression::Kind::bytes:
        for (const char byte : e.bytes) from = add_range(uint8_t(byte), uint8_t(byte), from);
        return from;
      case Expression::Kind::byte_range:
        return add_range(e.first, e.last, from);
      case Expression::Kind::sequence:
        for (const Expr& part : e.parts) from = add(*part, from);
        return from;
      case Expression::Kind::choice: {
        const int32_t to = nfa_.add();
        for (const Expr& part : e.parts) {
          const int32_t begin = nfa_.add();
          nfa_.link(from, begin);
          nfa_.link(add(*part, begin), to);
        }
        return to;
      }
      case Expression::Kind::repeat:
        return add_repeat(e, from);
      case Expression::Kind::call: {
        if (inlined_)
          if (const Expr body = inlined_(e.rule)) return add(*body, from);
        const int32_t to = nfa_.add();
        nfa_.states[size_t(from)].calls.push_back({e.rule, to});
        return to;
      }
      case Expression::Kind::automaton:
        return add_automaton(*e.automaton, from);
      case Expression::Kind::listing:
        break;
    }
    return add_listing(e, from);
  }

  int32_t add_range(uint8_t first, uint8_t last, int32_t from) {
    const int32_t to = nfa_.add();
    nfa_.states[size_t(from)].edges.push_back({first, last, to});
    return to;
  }

  int32_t add_repeat(const Expression& e, int32_t from) {
    const Expression& part = *e.parts.front();
    for (int i = 0; i < e.least; ++i) from = add(part, from);
    const int32_t to = nfa_.add();
    if (e.most < 0) {
      const int32_t loop = nfa_.add();
      nfa_.link(from, loop);
      nfa_.link(add(part, loop), loop);
      nfa_.link(loop, to);
      return to;
    }
    for (int i = e.least; i < e.most; ++i) {
      nfa_.link(from, to);
      const int32_t begin = nfa_.add();
      nfa_.link(from, begin);
      from = add(part, begin);
    }
    nfa_.link(from, to);
    return to;
  }

  int32_t add_automaton(const Automaton& a, int32_t from) {
    const auto base = int32_t(nfa_.states.size());
    for (int32_t s = 0; s < a.states(); ++s) nfa_.add();
    const int32_t to = nfa_.add();
    nfa_.link(from, base);
    for (int32_t s = 0; s < a.states(); ++s) {
      if (a.final[size_t(s)]) nfa_.link(base + s, to);
      Nfa::State& state = nfa_.states[size_t(base + s)];
      for (int byte = 0; byte < 256;) {
        const int32_t next = a.step(s, uint8_t(byte));
        int last = byte;
        while (last < 255 && a.step(s, uint8_t(last + 1)) == next) ++last;
        if (next >= 0) state.edges.push_back({uint8_t(byte), uint8_t(last), base + next});
        byte = last + 1;
      }
      for (const Automaton::Call& c : a.calls[size_t(s)])
        state.calls.push_back({c.rule, base + c.next});
    }
    return to;
  }

  // Two tracks: nothing has been listed yet, or something has. Both share each item.
  int32_t add_listing(const Expression& e, int32_t from) {
    int32_t nothing = from, something = nfa_.add();
    bool nothing_alive = true;
    for (const ListItem& item : e.items) {
      const int32_t begin = nfa_.add(), behind = nfa_.add();
      if (nothing_alive) nfa_.link(nothing, begin);
      nfa_.link(e.separator ? add(*e.separator, something) : something, begin);
      nfa_.link(add(*item.expression, begin), behind);
      const int32_t still_nothing = nfa_.add();
      if (item.required) {
        nothing_alive = false;
      } else {
        if (nothing_alive) nfa_.link(nothing, still_nothing);
        nfa_.link(something, behind);
      }
      nothing = still_nothing;
      something = behind;
    }
    const int32_t to = nfa_.add();
    if (nothing_alive) nfa_.link(nothing, to);
    nfa_.link(something, to);
    if (e.more == nullptr) return to;
    const int32_t begin = nfa_.add(), behind = nfa_.add();
    if (nothing_alive) nfa_.link(nothing, begin);
    nfa_.link(e.separator ? add(*e.separator, something) : something, begin);
    nfa_.link(add(*e.more, begin), behind);
    nfa_.link(e.separator ? add(*e.separator, behind) : behind, begin);
    nfa_.link(behind, to);
    return to;
  }

  const std::function<Expr(int)>& inlined_;
  Nfa nfa_;
  int32_t end_ = 0;
  int depth_ = 0;
};

// The classes of bytes that no edge tells apart.
void set_classes(const Nfa& nfa, Automaton& a) {
  std::array<bool, 257> begins{};
  for (const Nfa::State& s : nfa.states)
    for (const Nfa::Edge& e : s.edges) begins[e.first] = begins[size_t(e.last) + 1] = true;
  int current = 0;
  for (int byte = 0; byte < 256; ++byte) {
    if (byte > 0 && begins[size_t(byte)]) ++current;
    a.class_of[size_t(byte)] = uint8_t(current);
  }
  a.class_count = current + 1;
}

struct HashInts {
  size_t operator()(const std::vector<int32_t>& v) const {
    uint64_t h = 0x9e3779b97f4a7c15u;
    for (const int32_t x : v) h = (h ^ uint64_t(uint32_t(x))) * 0xff51afd7ed558ccdu, h ^= h >> 32;
    return size_t(h);
  }
};

class Determinizer {
 public:
  Determinizer(const Nfa& nfa, int32_t end) : nfa_(nfa), end_(end), mark_(nfa.states.size(), 0) {}

  Automaton run() {
    set_classes(nfa_, a_);
    std::vector<uint8_t> byte_of(size_t(a_.class_count));
    for (int byte = 255; byte >= 0; --byte) byte_of[a_.class_of[size_t(byte)]] = uint8_t(byte);
    id_of({0});
    for (size_t s = 0; s < sets_.size(); ++s) {
      const std::vector<int32_t> set = *sets_[s];
      std::map<int32_t, std::vector<int32_t>> calls;
      std::vector<std::vector<int32_t>> by_class(byte_of.size());
      for (const int32_t n : set) {
        const Nfa::State& state = nfa_.states[size_t(n)];
        if (n == end_) a_.final[s] = 1;
        for (const Nfa::Edge& e : state.edges)
          for (int c = a_.class_of[e.first]; c <= a_.class_of[e.last]; ++c)
            by_class[size_t(c)].push_back(e.to);
        for (const Automaton::Call& c : state.calls) calls[c.rule].push_back(c.next);
      }
      for (size_t c = 0; c < by_class.size(); ++c)
        if (!by_class[c].empty()) {
          const int32_t to = id_of(std::move(by_class[c]));
          a_.next[s * byte_of.size() + c] = to;
        }
      for (auto& [rule, to] : calls) {
        const int32_t next = id_of(std::move(to));
        a_.calls[s].push_back({rule, next});
      }
    }
    return std::move(a_);
  }

 private:
  // Of the set with all that can be reached without a byte.
  int32_t id_of(std::vector<int32_t> set) {
    ++round_;
    std::vector<int32_t> closed;
    for (const int32_t n : set) reach(n, set_work_);
    while (!set_work_.empty()) {
      const int32_t n = set_work_.back();
      set_work_.pop_back();
      const Nfa::State& state = nfa_.states[size_t(n)];
      if (n == end_ || !state.edges.empty() || !state.calls.empty()) closed.push_back(n);
      for (const int32_t to : state.empty) reach(to, set_work_);
      spend(1);
    }
    std::ranges::sort(closed);
    const auto [it, fresh] = ids_.try_emplace(std::move(closed), int32_t(sets_.size()));
    if (fresh) {
      if (int(sets_.size()) >= kMaxStates) too_large();
      sets_.push_back(&it->first);
      a_.final.push_back(0);
      a_.calls.emplace_back();
      a_.next.resize(a_.next.size() + size_t(a_.class_count), -1);
    }
    return it->second;
  }

  void reach(int32_t n, std::vector<int32_t>& work) {
    if (mark_[size_t(n)] == round_) return;
    mark_[size_t(n)] = round_;
    work.push_back(n);
  }

  const Nfa& nfa_;
  const int32_t end_;
  Automaton a_;
  std::unordered_map<std::vector<int32_t>, int32_t, HashInts> ids_;
  std::vector<const std::vector<int32_t>*> sets_;
  std::vector<int32_t> set_work_;
  std::vector<uint32_t> mark_;
  uint32_t round_ = 0;
};

// Both side by side; `b` is -1 once it has no edge, if `b_may_end`.
template <class Final>
Automaton product(const Automaton& a, const Automaton& b, bool b_may_end, Final final) {
  Automaton out;
  std::map<std::pair<int, int>, int> classes;
  for (int byte = 0; byte < 256; ++byte) {
    const std::pair<int, int> pair{a.class_of[size_t(byte)], b.class_of[size_t(byte)]};
    out.class_of[size_t(byte)] =
        uint8_t(classes.try_emplace(pair, int(classes.size())).first->second);
  }
  out.class_count = int(classes.size());
  std::map<std::pair<int32_t, int32_t>, int32_t> ids;
  std::vector<std::pair<int32_t, int32_t>> states;
  const auto id_of = [&](std::pair<int32_t, int32_t> pair) {
    const auto [it, fresh] = ids.try_emplace(pair, int32_t(states.size()));
    if (fresh) {
      if (int(states.size()) >= kMaxStates) too_large();
      states.push_back(pair);
      out.final.push_back(final(a.final[size_t(pair.first)] != 0,
                                pair.second >= 0 && b.final[size_t(pair.second)] != 0));
      out.next.resize(out.next.size() + size_t(out.class_count), -1);
    }
    return it->second;
  };
  id_of({0, 0});
  for (size_t s = 0; s < states.size(); ++s) {
    const auto [x, y] = states[s];
    for (const auto& [pair, c] : classes) {
      const int32_t to_a = a.next[size_t(x) * size_t(a.class_count) + size_t(pair.first)];
      const int32_t to_b =
          y < 0 ? -1 : b.next[size_t(y) * size_t(b.class_count) + size_t(pair.second)];
      if (to_a < 0 || (to_b < 0 && !b_may_end)) continue;
      spend(1);
      const int32_t to = id_of({to_a, to_b});
      out.next[s * size_t(out.class_count) + size_t(c)] = to;
    }
  }
  out.calls.resize(out.final.size());
  trim(out, [](int) { return true; });
  return out;
}

}  // namespace

bool Automaton::has_bytes(int32_t state) const {
  const auto row = next.begin() + std::ptrdiff_t(state) * class_count;
  return std::any_of(row, row + class_count, [](int32_t to) { return to >= 0; });
}

bool Automaton::accepts(std::string_view text) const {
  int32_t state = 0;
  for (const char byte : text) {
    state = step(state, uint8_t(byte));
    if (state < 0) return false;
  }
  return final[size_t(state)] != 0;
}

Automaton build_automaton(const Expr& expression, const std::function<Expr(int rule)>& inlined) {
  NfaBuilder builder(inlined);
  const Nfa nfa = builder.build(expression);
  return Determinizer(nfa, builder.end()).run();
}

Automaton intersection(const Automaton& a, const Automaton& b) {
  return product(a, b, false, [](bool x, bool y) { return x && y; });
}

Automaton difference(const Automaton& a, const Automaton& b) {
  return product(a, b, true, [](bool x, bool y) { return x && !y; });
}

bool trim(Automaton& a, const std::function<bool(int rule)>& alive) {
  const auto n = size_t(a.states());
  std::vector<std::vector<int32_t>> from(n);
  for (size_t s = 0; s < n; ++s) {
    for (int c = 0; c < a.class_count; ++c)
      if (const int32_t to = a.next[s * size_t(a.class_count) + size_t(c)]; to >= 0)
        from[size_t(to)].push_back(int32_t(s));
    for (const Automaton::Call& c : a.calls[s])
      if (alive(c.rule)) from[size_t(c.next)].push_back(int32_t(s));
  }
  std::vector<uint8_t> useful(n, 0);
  std::vector<int32_t> work;
  const auto reach = [&](int32_t s) {
    if (!std::exchange(useful[size_t(s)], 1)) work.push_back(s);
  };
  for (size_t s = 0; s < n; ++s)
    if (a.final[s]) reach(int32_t(s));
  while (!work.empty()) {
    const int32_t s = work.back();
    work.pop_back();
    for (const int32_t f : from[size_t(s)]) reach(f);
  }
  for (int32_t& to : a.next)
    if (to >= 0 && !useful[size_t(to)]) to = -1;
  for (size_t s = 0; s < n; ++s)
    std::erase_if(a.calls[s], [&](const Automaton::Call& c) {
      return !useful[size_t(c.next)] || !alive(c.rule);
    });
  return useful[0] != 0;
}

}  // namespace kivi::grammar
