// SPDX-License-Identifier: Apache-2.0
#include "engine/grammar/compiled_grammar.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <deque>
#include <string_view>
#include <utility>

#include "engine/grammar/pure_tokens.h"
#include "engine/grammar/token_bits.h"

namespace kivi::grammar {
namespace {

constexpr int32_t kUnknownPlain = -3, kSomePlain = -2, kNoPlain = -1;

// Where a state goes by the characters that a JSON string holds as they are, if they all lead to
// one state without calls on the way, nor ends, unless `ends` is false: then they do not matter.
class PlainProbe {
 public:
  PlainProbe(const Program& program, bool ends) : program_(program), ends_(ends) {}

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
      const bool passes = state < 0 || !may_leave(state);
      int32_t to = state < 0 ? kNoPlain : state;
      if (!passes || (to_ != kUnknownPlain && to_ != to)) to = kSomePlain;
      to_ = to;
      return;
    }
    if (may_leave(state)) {
      to_ = kSomePlain;
      return;
    }
    const std::array<int32_t, 4> key{state, more, low, high};
    if (std::ranges::find(seen_, key) != seen_.end()) return;
    seen_.push_back(key);
    for (int byte = low; byte <= high; ++byte)
      note(program_.step(state, uint8_t(byte)), more - 1, 0x80, 0xBF);
  }

  bool may_leave(int32_t state) const {
    return (ends_ && program_.final(state)) || program_.has_calls(state);
  }

  const Program& program_;
  const bool ends_;
  int32_t to_ = kUnknownPlain;
  std::vector<std::array<int32_t, 4>> seen_;
};

// The bytes that plain tokens and what remains of them behind any byte can begin with.
ByteSet plain_bytes() {
  ByteSet set;
  for (size_t byte = 0x20; byte < 256; ++byte) set[byte] = byte != '"' && byte != '\\';
  return set;
}

// The states that take bytes, in the order in which a walk through the program comes upon them. A
// text is at those first that come first. A state that takes one byte alone costs the walk nothing:
// such a text is forced, and hardly needs masks.
std::vector<int32_t> states_by_reach(const Program& program) {
  std::vector<int32_t> order;
  enum : uint8_t { kNew, kWaits, kDone };
  std::vector<uint8_t> known(size_t(program.states()), kNew);
  std::deque<int32_t> next{program.start()};
  const auto reach = [&](int32_t state) {
    if (known[size_t(state)] != kNew) return;
    known[size_t(state)] = kWaits;
    next.push_back(state);
  };
  while (!next.empty()) {
    const int32_t state = next.front();
    next.pop_front();
    if (std::exchange(known[size_t(state)], uint8_t(kDone)) == kDone) continue;
    order.push_back(state);
    for (const Program::Call& call : program.calls(state)) {
      reach(call.start);
      reach(call.next);
    }
    int bytes = 0;
    int32_t first = -1;
    for (int byte = 0; byte < 256; ++byte) {
      const int32_t to = program.step(state, uint8_t(byte));
      if (to < 0) continue;
      if (bytes++ == 0)
        first = to;
      else
        reach(to);
    }
    if (bytes == 1 && !program.has_calls(state))
      next.push_front(first);
    else if (bytes > 0)
      reach(first);
  }
  std::erase_if(order, [&](int32_t state) { return !program.has_bytes(state); });
  return order;
}

}  // namespace

size_t StateMask::bytes() const {
  return sizeof *this + words.capacity() * sizeof words[0] + ids.capacity() * sizeof ids[0] +
         tails.bytes();
}

CompiledGrammar::CompiledGrammar(Grammar grammar, std::shared_ptr<const TokenVocabulary> vocabulary,
                                 double seconds)
    : program_(std::move(grammar)),
      vocabulary_(std::move(vocabulary)),
      bytes_{*vocabulary_},
      follow_(program_),
      order_(states_by_reach(program_)),
      masks_(size_t(program_.states())),
      after_plain_(size_t(program_.states())),
      kind_steps_(program_) {
  bytes_.add(int64_t(program_.bytes() + masks_.size() * (sizeof(Place) + sizeof after_plain_[0])));
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
  bytes_.add(int64_t(fresh->bytes()));
  return *fresh.release();
}

bool CompiledGrammar::has_mask(int32_t state) const {
  return masks_[size_t(state)].mask.load(std::memory_order_relaxed) != nullptr;
}

int32_t CompiledGrammar::after_plain(int32_t state) const {
  std::atomic<int32_t>& known = after_plain_[size_t(state)];
  int32_t to = known.load(std::memory_order_relaxed);
  if (to == kUnknownPlain) {
    static const ByteSet plain = plain_bytes();
    // A plain token that leads out of the rule goes on with a plain byte there. Where none can
    // come, only those fit that stay within the rule, and it does not matter where it may end.
    const bool ends = (follow_.behind(program_.rule(state)) & plain).any();
    to = PlainProbe(program_, ends).run(state);
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

CompiledGrammar::KindRun CompiledGrammar::kind_run(int32_t state) const {
  constexpr uint8_t kLetters = 1 << byte_kind('a');  // without them there is little to spare
  const uint8_t kinds = kind_steps_.of(state).kinds;
  if ((kinds & kLetters) == 0) return {};
  ByteSet bytes;
  for (size_t byte = 0; byte < 256; ++byte) bytes[byte] = kinds >> byte_kind(uint8_t(byte)) & 1;
  // Else a token may begin in this rule and end in another one.
  if ((follow_.behind(program_.rule(state)) & bytes).any()) return {};
  for (int n = 0; n < PureTokens::kBytesMax; ++n) {
    const KindSteps::Step step = kind_steps_.of(state);
    if ((kinds & ~step.kinds) != 0) {
      for (size_t byte = 0; byte < 256; ++byte)
        if (bytes[byte] && program_.step(state, uint8_t(byte)) >= 0) return {};
      return {kinds, n};
    }
    if (step.next == state) break;
    state = step.next;
  }
  return {kinds, PureTokens::kBytesMax};
}

std::unique_ptr<StateMask> CompiledGrammar::make_mask(int32_t state) const {
  auto mask = std::make_unique<StateMask>();
  Explorer explorer(program_, kind_steps_);
  mask->plain = plain_run(state);
  const KindRun run = mask->plain > 0 ? KindRun() : kind_run(state);
  const PureTokens* pure = run.bytes > 0 ? vocabulary_->pure(run.kinds) : nullptr;
  if (pure != nullptr) mask->pure = &pure->mask(run.bytes);
  const TokenTrie& trie = mask->plain > 0   ? vocabulary_->special()
                          : pure != nullptr ? pure->others()
                                            : vocabulary_->all();
  const std::span<const TokenTrie::Node> nodes = trie.nodes();
  const std::span<const int32_t> ids = trie.ids();
  const ByteSet follow = program_.returns(state) ? follow_.behind(program_.rule(state)) : ByteSet();
  const bool leaves = follow.any();
  std::vector<int32_t> sets(size_t(trie.depth_max()) + 1);  // by depth
  sets[0] = state;
  // Lengths of the beginnings of the node's text behind which the rule may have ended, if the next
  // byte can come there.
  std::vector<size_t> ends;
  std::vector<std::pair<std::string_view, int32_t>> tails;
  std::vector<int32_t> taken;
  taken.reserve(1024);
  for (int i = 0; i < trie.size();) {
    const TokenTrie::Node& node = nodes[size_t(i)];
    const int32_t from = sets[node.depth];
    if (leaves) {
      while (!ends.empty() && ends.back() >= node.depth) ends.pop_back();
      if (node.depth > 0 && follow[node.byte] && explorer.ends(from)) ends.push_back(node.depth);
    }
    const int32_t set = explorer.step(from, node.byte);
    // All below the node is judged at once, or the node alone.
    const bool all =
        set < 0 || node.height == 0 || explorer.takes_all(set, node.kinds_below, node.height);
    const int next = all ? node.behind : i + 1;
    const auto node_ids =
        ids.subspan(size_t(node.first_id), size_t(nodes[size_t(next)].first_id - node.first_id));
    if (set < 0) {
      for (const size_t end : ends)
        for (const int32_t id : node_ids)
          tails.emplace_back(std::string_view(vocabulary_->bytes(id)).substr(end), id);
    } else {
      for (const int32_t id : node_ids) taken.push_back(id);
      sets[size_t(node.depth) + 1] = set;
    }
    i = next;
  }
  mask->tails = TokenTrie(std::move(tails));
  if (taken.size() > size_t(vocabulary_->words()) / 2) {
    mask->words.resize(size_t(vocabulary_->words()));
    for (const int32_t id : taken) set_bit(mask->words, id);
  } else {
    mask->ids.assign(taken.begin(), taken.end());
  }
  return mask;
}

}  // namespace kivi::grammar
