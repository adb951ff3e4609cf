// SPDX-License-Identifier: Apache-2.0
// The sets FIRST and FOLLOW of Aho, Sethi and Ullman, "Compilers" (1986), section 4.4, for automata
// that call each other.
#include "engine/grammar/follow_bytes.h"

#include <unordered_map>

namespace kivi::grammar {
namespace {

// What can come first from a state.
struct First {
  ByteSet bytes;
  bool nullable = false;  // the state's rule may end before it takes a byte

  bool add(const First& more) {
    const First before = *this;
    bytes |= more.bytes;
    nullable = nullable || more.nullable;
    return bytes != before.bytes || nullable != before.nullable;
  }
};

// The states that call, and those that a call leads to, each with its First.
class Firsts {
 public:
  explicit Firsts(const Program& program) : program_(program) {
    for (int32_t state = 0; state < program.states(); ++state) {
      if (program.calls(state).empty()) continue;
      callers_.push_back(state);
      note(state);
      for (const Program::Call& call : program.calls(state)) {
        ++calls_;
        note(call.start);
        note(call.next);
      }
    }
  }

  // One pass over all calls. Returns true if a set has grown.
  bool grow() {
    bool grown = false;
    for (size_t i = callers_.size(); i-- > 0;)  // what is called mostly has the larger number
      for (const Program::Call& call : program_.calls(callers_[i])) {
        First& first = of_.at(callers_[i]);
        const First& called = of_.at(call.start);
        const First& next = of_.at(call.next);
        First more{called.bytes, called.nullable && next.nullable};
        if (called.nullable) more.bytes |= next.bytes;
        grown |= first.add(more);
      }
    return grown;
  }

  const First& of(int32_t state) const { return of_.at(state); }
  const std::vector<int32_t>& callers() const { return callers_; }
  size_t calls() const { return calls_; }

 private:
  void note(int32_t state) {
    const auto [it, fresh] = of_.try_emplace(state);
    if (!fresh) return;
    for (size_t byte = 0; byte < 256; ++byte)
      it->second.bytes[byte] = program_.step(state, uint8_t(byte)) >= 0;
    it->second.nullable = program_.final(state);
  }

  const Program& program_;
  std::unordered_map<int32_t, First> of_;
  std::vector<int32_t> callers_;
  size_t calls_ = 0;
};

}  // namespace

FollowBytes::FollowBytes(const Program& program) : follow_(size_t(program.rules())) {
  // A grammar that needs more work than this gets all bytes, which is always right.
  constexpr size_t kCallsMax = 1 << 19;
  Firsts firsts(program);
  size_t work = 0;
  const auto grow = [&](auto pass) {
    while (pass())
      if ((work += firsts.calls()) > kCallsMax) return false;
    return true;
  };
  const auto pass = [&] {
    bool grown = false;
    for (const int32_t state : firsts.callers())
      for (const Program::Call& call : program.calls(state)) {
        ByteSet& set = follow_[size_t(program.rule(call.start))];
        const First& next = firsts.of(call.next);
        ByteSet more = set | next.bytes;
        if (next.nullable) more |= follow_[size_t(program.rule(state))];
        grown |= more != set;
        set = more;
      }
    return grown;
  };
  if (grow([&] { return firsts.grow(); }) && grow(pass)) return;
  for (ByteSet& set : follow_) set.set();
}

}  // namespace kivi::grammar
