// SPDX-License-Identifier: Apache-2.0
#include "engine/text/stop_matcher.h"

#include "base/verify.h"

namespace kivi {

StopStrings::StopStrings(std::vector<std::string> strings) : strings_(std::move(strings)) {
  nodes_.emplace_back();
  for (size_t i = 0; i < strings_.size(); ++i) add(int(i));
  link_suffixes();
}

int32_t StopStrings::child(int32_t node, unsigned char byte) const {
  int32_t c = nodes_[size_t(node)].first_child;
  while (c >= 0 && nodes_[size_t(c)].byte != byte) c = nodes_[size_t(c)].next_sibling;
  return c;
}

void StopStrings::add(int index) {
  KIVI_VERIFY(!strings_[size_t(index)].empty());
  int32_t node = 0;
  for (unsigned char byte : strings_[size_t(index)]) {
    int32_t c = child(node, byte);
    if (c < 0) {
      c = int32_t(nodes_.size());
      nodes_.push_back({.next_sibling = nodes_[size_t(node)].first_child,
                        .depth = nodes_[size_t(node)].depth + 1,
                        .byte = byte});
      nodes_[size_t(node)].first_child = c;
    }
    node = c;
  }
  if (nodes_[size_t(node)].match < 0) nodes_[size_t(node)].match = index;
}

// Breadth first, so that the suffix of a node (which is shorter) is linked before it.
void StopStrings::link_suffixes() {
  std::vector<int32_t> order = {0};
  for (size_t i = 0; i < order.size(); ++i) {
    const int32_t parent = order[i];
    for (int32_t c = nodes_[size_t(parent)].first_child; c >= 0;
         c = nodes_[size_t(c)].next_sibling) {
      Node& node = nodes_[size_t(c)];
      node.suffix = parent == 0 ? 0 : next(nodes_[size_t(parent)].suffix, node.byte);
      if (node.match < 0) node.match = nodes_[size_t(node.suffix)].match;
      order.push_back(c);
    }
  }
}

int32_t StopStrings::next(int32_t state, unsigned char byte) const {
  for (;;) {
    const int32_t c = child(state, byte);
    if (c >= 0) return c;
    if (state == 0) return 0;
    state = nodes_[size_t(state)].suffix;
  }
}

StopMatcher::StopMatcher(std::shared_ptr<const StopStrings> strings, bool include_match)
    : strings_(std::move(strings)), include_match_(include_match) {}

bool StopMatcher::push(std::string_view text, std::string& out) {
  if (matched_ >= 0) return true;
  if (strings_->empty()) {
    out.append(text);
    return false;
  }
  for (size_t i = 0; i < text.size(); ++i) {
    state_ = strings_->next(state_, static_cast<unsigned char>(text[i]));
    if (matched_ = strings_->match(state_); matched_ < 0) continue;
    held_.append(text.substr(0, i + 1));
    const size_t cut = include_match_ ? 0 : matched_string().size();
    out.append(held_, held_begin_, held_.size() - cut - held_begin_);
    held_.clear();
    held_begin_ = 0;
    return true;
  }
  held_.append(text);
  const size_t keep = include_match_ ? 0 : size_t(strings_->depth(state_));
  const size_t certain = held_.size() - keep;
  out.append(held_, held_begin_, certain - held_begin_);
  held_begin_ = certain;
  if (held_begin_ >= held_.size() / 2) {  // amortized: at most as many bytes move as were let go
    held_.erase(0, held_begin_);
    held_begin_ = 0;
  }
  return false;
}

void StopMatcher::flush(std::string& out) {
  if (matched_ < 0) out.append(held_, held_begin_);
  held_.clear();
  held_begin_ = 0;
}

}  // namespace kivi
