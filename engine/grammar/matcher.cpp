// SPDX-License-Identifier: Apache-2.0
#include "engine/grammar/matcher.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <map>
#include <utility>

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

void set_bit(std::span<uint32_t> words, int32_t id) {
  words[size_t(id) / 32] |= 1u << (uint32_t(id) % 32);
}

}  // namespace

CompiledGrammar::CompiledGrammar(Grammar grammar, std::shared_ptr<const TokenVocabulary> vocabulary,
                                 double seconds)
    : program_(std::move(grammar)),
      vocabulary_(std::move(vocabulary)),
      masks_(size_t(program_.states())),
      after_plain_(size_t(program_.states())) {
  for (std::atomic<int32_t>& to : after_plain_) to.store(kUnknownPlain);
  using Clock = std::chrono::steady_clock;
  const Clock::time_point end = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                                   std::chrono::duration<double>(seconds));
  for (int32_t state = 0; state < program_.states() && Clock::now() < end; ++state)
    if (program_.has_bytes(state)) mask(state);
}

CompiledGrammar::~CompiledGrammar() {
  for (const std::atomic<const StateMask*>& mask : masks_) delete mask.load();
}

const StateMask& CompiledGrammar::mask(int32_t state) const {
  std::atomic<const StateMask*>& place = masks_[size_t(state)];
  if (const StateMask* made = place.load(std::memory_order_acquire)) return *made;
  std::unique_ptr<StateMask> fresh = make_mask(state);
  const StateMask* other = nullptr;
  if (!place.compare_exchange_strong(other, fresh.get(), std::memory_order_acq_rel)) return *other;
  return *fresh.release();
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

Matcher::Matcher(std::shared_ptr<const CompiledGrammar> grammar)
    : grammar_(std::move(grammar)), stepper_(grammar_->program()) {
  stepper_.add(grammar_->program().start(), 0, now_);
}

void Matcher::fill_mask(std::span<uint32_t> words) {
  std::ranges::fill(words, 0u);
  const auto add_words = [&](const std::vector<uint32_t>& more) {
    for (size_t i = 0; i < more.size(); ++i) words[i] |= more[i];
  };
  int plain = 0;
  for (const Configuration& c : now_.list) {
    const StateMask& mask = grammar_->mask(c.state);
    if (mask.plain > plain) add_words(grammar_->vocabulary().plain_mask(plain = mask.plain));
    add_words(mask.words);
    for (const int32_t id : mask.ids) set_bit(words, id);
    if (c.stack == 0 || mask.tails.size() == 0) continue;
    for (const int32_t id : tail_tokens(mask, c)) set_bit(words, id);
  }
}

const std::vector<int32_t>& Matcher::tail_tokens(const StateMask& mask, Configuration from) {
  constexpr size_t kKept = 64;
  const uint64_t key = uint64_t(uint32_t(from.state)) << 32 | uint32_t(from.stack);
  if (tails_.size() >= kKept && !tails_.contains(key)) tails_.clear();
  const auto [place, fresh] = tails_.try_emplace(key);
  std::vector<int32_t>& found = place->second;
  if (!fresh) return found;
  const TokenTrie& trie = mask.tails;
  const size_t stacks_before = stepper_.stacks().size();
  levels_.resize(std::max(levels_.size(), size_t(trie.depth_max()) + 1));
  levels_[0].clear();
  const Stacks::Frame frame = stepper_.stacks().top(from.stack);
  stepper_.add(frame.next, frame.below, levels_[0]);
  const std::span<const TokenTrie::Node> nodes = trie.nodes();
  for (int i = 0; i < trie.size();) {
    const TokenTrie::Node& node = nodes[size_t(i)];
    Configurations& to = levels_[size_t(node.depth) + 1];
    stepper_.step(levels_[node.depth], node.byte, to);
    if (to.dead()) {
      i = node.behind;
      continue;
    }
    const std::span<const int32_t> ids = trie.ids(i);
    found.insert(found.end(), ids.begin(), ids.end());
    i = to.list.empty() ? node.behind : i + 1;
  }
  stepper_.stacks().shrink(stacks_before);
  return found;
}

bool Matcher::accept(int32_t token) {
  if (token < 0 || token >= grammar_->vocabulary().size()) return false;
  const std::string& bytes = grammar_->vocabulary().bytes(token);
  return !bytes.empty() && accept(std::string_view(bytes));
}

bool Matcher::accept(std::string_view bytes) {
  Configurations before = now_;
  for (size_t i = 0; i < bytes.size(); ++i) {
    stepper_.step(now_, uint8_t(bytes[i]), next_);
    std::swap(now_, next_);
    if (!now_.list.empty() || (now_.may_end && i + 1 == bytes.size())) continue;
    now_ = std::move(before);
    return false;
  }
  return true;
}

std::string Matcher::forced_text(size_t bytes_max) {
  const Program& program = grammar_->program();
  // The one byte that a set takes; -1: it takes several, or the text may end.
  const auto only_byte = [&](const Configurations& set) {
    int only = -1;
    if (set.may_end) return only;
    for (const Configuration& c : set.list)
      for (int byte = 0; byte < 256; ++byte)
        if (byte != only && program.step(c.state, uint8_t(byte)) >= 0) {
          if (only >= 0) return -1;
          only = byte;
        }
    return only;
  };
  std::string text;
  int byte = only_byte(now_);
  if (byte < 0) return text;
  const size_t stacks_before = stepper_.stacks().size();
  Configurations at = now_;
  while (byte >= 0 && text.size() < bytes_max) {
    text += char(uint8_t(byte));
    stepper_.step(at, uint8_t(byte), next_);
    std::swap(at, next_);
    byte = only_byte(at);
  }
  stepper_.stacks().shrink(stacks_before);
  return text;
}

}  // namespace kivi::grammar
