// SPDX-License-Identifier: Apache-2.0
#include "engine/grammar/compiled_grammar.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <map>
#include <string_view>
#include <utility>

#include "engine/grammar/configurations.h"
#include "engine/grammar/work_limit.h"

namespace kivi::grammar {
namespace {

// The configurations that a state leads to within its rule, as a deterministic automaton that is
// made while it is used.
class Explorer {
 public:
  static constexpr int32_t kDead = -1;

  // State 0 takes the first byte by `state` itself; what it calls are configurations of their own.
  Explorer(const Program& program, int32_t state) : stepper_(program) {
    Configurations start;
    start.list.push_back({state, 0});
    add(std::move(start));
  }

  int32_t step(int32_t from, uint8_t byte) {
    int32_t& known = next_[size_t(from)][byte];
    if (known != kUnknown) return known;
    Configurations to;
    stepper_.step(*sets_[size_t(from)], byte, to);
    const int32_t id = to.dead() ? kDead : add(std::move(to));
    return next_[size_t(from)][byte] = id;
  }
  // May the rule have ended here?
  bool ends(int32_t set) const { return sets_[size_t(set)]->may_end; }

 private:
  static constexpr int32_t kUnknown = -2;

  int32_t add(Configurations set) {
    std::ranges::sort(set.list);
    std::vector<Configuration> key = set.list;
    if (set.may_end) key.push_back({-1, -1});
    const auto [it, fresh] = numbers_.try_emplace(std::move(key), int32_t(sets_.size()));
    if (fresh) {
      spend(100);  // it takes more than a kilobyte
      sets_.push_back(std::make_unique<Configurations>(std::move(set)));
      next_.emplace_back().fill(kUnknown);
    }
    return it->second;
  }

  Stepper stepper_;
  std::vector<std::unique_ptr<Configurations>> sets_;
  std::vector<std::array<int32_t, 256>> next_;
  std::map<std::vector<Configuration>, int32_t> numbers_;
};

constexpr int32_t kUnknownPlain = -3, kSomePlain = -2, kNoPlain = -1;

// Where a state goes by the characters that a JSON string holds as they are, if they all lead to
// one state without calls and ends on the way.
class PlainProbe {
 public:
  explicit PlainProbe(const Program& program) : program_(program) {}

  int32_t run(int32_t state) {
    to_ = kUnknownPlain;
    for (int byte = 0x20; byte < 0x80; ++byte)
      if (byte != '"' && byte != '\\') note(program_.step(state, uint8_t(byte)), 0, 0, 0);
    for (int head = 0xC2; head <= 0xF4 && to_ != kSomePlain; ++head)
      note(program_.step(state, uint8_t(head)),
           head < 0xE0   ? 1
           : head < 0xF0 ? 2
                         : 3,
           head == 0xE0   ? 0xA0
           : head == 0xF0 ? 0x90
                          : 0x80,
           head == 0xED   ? 0x9F
           : head == 0xF4 ? 0x8F
                          : 0xBF);
    return to_;
  }

 private:
  // `state` has been reached; `more` bytes of a character are to come, the next of [low, high].
  void note(int32_t state, int more, int low, int high) {
    if (to_ == kSomePlain) return;
    if (state < 0 || more == 0) {
      const bool passes = state < 0 || (!program_.final(state) && program_.calls(state).empty());
      int32_t to = state < 0 ? kNoPlain : state;
      if (!passes || (to_ != kUnknownPlain && to_ != to)) to = kSomePlain;
      to_ = to;
      return;
    }
    if (program_.final(state) || !program_.calls(state).empty()) {
      to_ = kSomePlain;
      return;
    }
    const std::array<int32_t, 4> key{state, more, low, high};
    if (std::ranges::find(seen_, key) != seen_.end()) return;
    seen_.push_back(key);
    for (int byte = low; byte <= high; ++byte)
      note(program_.step(state, uint8_t(byte)), more - 1, 0x80, 0xBF);
  }

  const Program& program_;
  int32_t to_ = kUnknownPlain;
  std::vector<std::array<int32_t, 4>> seen_;
};

// The states that take bytes, in the order in which a walk through the program comes upon them. A
// text is at those first that come first.
std::vector<int32_t> states_by_reach(const Program& program) {
  std::vector<int32_t> order{program.start()};
  std::vector<bool> seen(size_t(program.states()), false);
  seen[size_t(program.start())] = true;
  const auto reach = [&](int32_t state) {
    if (state < 0 || seen[size_t(state)]) return;
    seen[size_t(state)] = true;
    order.push_back(state);
  };
  for (size_t i = 0; i < order.size(); ++i) {
    const int32_t state = order[i];
    for (const Program::Call& call : program.calls(state)) {
      reach(call.start);
      reach(call.next);
    }
    for (int byte = 0; byte < 256; ++byte) reach(program.step(state, uint8_t(byte)));
  }
  std::erase_if(order, [&](int32_t state) { return !program.has_bytes(state); });
  return order;
}

}  // namespace

void set_bit(std::span<uint32_t> words, int32_t id) {
  words[size_t(id) / 32] |= 1u << (uint32_t(id) % 32);
}

size_t StateMask::bytes() const {
  return sizeof *this + words.capacity() * sizeof words[0] + ids.capacity() * sizeof ids[0] +
         tails.bytes();
}

CompiledGrammar::CompiledGrammar(Grammar grammar, std::shared_ptr<const TokenVocabulary> vocabulary,
                                 double seconds)
    : program_(std::move(grammar)),
      vocabulary_(std::move(vocabulary)),
      order_(states_by_reach(program_)),
      masks_(size_t(program_.states())),
      after_plain_(size_t(program_.states())) {
  for (std::atomic<int32_t>& to : after_plain_) to.store(kUnknownPlain);
  using Clock = std::chrono::steady_clock;
  const Clock::time_point end = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                                   std::chrono::duration<double>(seconds));
  for (const int32_t state : order_)
    if (Clock::now() < end) mask(state);
}

const StateMask& CompiledGrammar::mask(int32_t state) const {
  std::atomic<const StateMask*>& place = masks_[size_t(state)].mask;
  if (const StateMask* made = place.load(std::memory_order_acquire)) return *made;
  std::unique_ptr<StateMask> fresh = make_mask(state);
  const StateMask* other = nullptr;
  if (!place.compare_exchange_strong(other, fresh.get(), std::memory_order_acq_rel)) return *other;
  return *fresh.release();
}

bool CompiledGrammar::has_mask(int32_t state) const {
  return masks_[size_t(state)].mask.load(std::memory_order_relaxed) != nullptr;
}

int32_t CompiledGrammar::after_plain(int32_t state) const {
  std::atomic<int32_t>& known = after_plain_[size_t(state)];
  int32_t to = known.load(std::memory_order_relaxed);
  if (to == kUnknownPlain) {
    to = PlainProbe(program_).run(state);
    known.store(to, std::memory_order_relaxed);
  }
  return to;
}

int CompiledGrammar::plain_run(int32_t state) const {
  int n = 0;
  while (n < TokenVocabulary::kPlainCharsMax) {
    const int32_t to = after_plain(state);
    if (to == kNoPlain) return n;
    if (to == kSomePlain) return 0;
    ++n;
    if (to == state) return TokenVocabulary::kPlainCharsMax;
    state = to;
  }
  return n;
}

std::unique_ptr<StateMask> CompiledGrammar::make_mask(int32_t state) const {
  auto mask = std::make_unique<StateMask>();
  Explorer explorer(program_, state);
  mask->plain = plain_run(state);
  const TokenTrie& trie = mask->plain > 0 ? vocabulary_->special() : vocabulary_->all();
  const std::span<const TokenTrie::Node> nodes = trie.nodes();
  std::vector<int32_t> sets(size_t(trie.depth_max()) + 1);  // by depth
  std::vector<int32_t> ends;  // nodes at which the rule may have ended and that have children
  std::vector<uint8_t> accepted(size_t(trie.size()), 0);
  for (int i = 0; i < trie.size();) {
    const TokenTrie::Node& node = nodes[size_t(i)];
    const int32_t set = explorer.step(sets[node.depth], node.byte);
    if (set < 0) {
      i = node.behind;
      continue;
    }
    sets[size_t(node.depth) + 1] = set;
    accepted[size_t(i)] = 1;
    const std::span<const int32_t> ids = trie.ids(i);
    mask->ids.insert(mask->ids.end(), ids.begin(), ids.end());
    if (explorer.ends(set) && trie.has_children(i) && program_.returns(state)) ends.push_back(i);
    ++i;
  }
  std::vector<std::pair<std::string_view, int32_t>> tails;
  for (const int32_t end : ends) {
    const size_t length = size_t(nodes[size_t(end)].depth) + 1;
    for (int i = end + 1; i < nodes[size_t(end)].behind; ++i)
      if (!accepted[size_t(i)])
        for (const int32_t id : trie.ids(i))
          tails.emplace_back(std::string_view(vocabulary_->bytes(id)).substr(length), id);
  }
  mask->tails = TokenTrie(std::move(tails));
  if (mask->ids.size() > size_t(vocabulary_->words()) / 2) {
    mask->words.resize(size_t(vocabulary_->words()));
    for (const int32_t id : mask->ids) set_bit(mask->words, id);
    mask->ids = {};
  }
  return mask;
}

}  // namespace kivi::grammar
