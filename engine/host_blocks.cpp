// SPDX-License-Identifier: Apache-2.0
#include "engine/host_blocks.h"

#include <algorithm>
#include <utility>

namespace kivi {
namespace {

// Ids of blocks on the host. Those of the device count from 1.
constexpr uint64_t kFirstId = uint64_t(1) << 47;

}  // namespace

HostBlocks::HostBlocks(PrefixCache& device) : device_(device), next_id_(kFirstId) {
  device_.announce_also([this](PrefixObserver& observer) { announce_to(observer); });
}

const std::vector<BlockName>& HostBlocks::children(const BlockName& name) const {
  static const std::vector<BlockName> none;
  const auto found = children_.find(name);
  return found == children_.end() ? none : found->second;
}

StoredBlock HostBlocks::described(const Block& block) const {
  return {.id = block.id,
          .parent = block.first ? 0 : blocks_.at(block.parent).id,
          .tokens = block.tokens,
          .unit = device_.blocks().unit(),
          .medium = PrefixMedium::host};
}

void HostBlocks::add(const BlockName& name, const BlockName* parent,
                     std::span<const int32_t> tokens) {
  const auto [place, is_new] = blocks_.try_emplace(name);
  if (!is_new) return;
  Block& block = place->second;
  block.tokens.assign(tokens.begin(), tokens.end());
  block.first = parent == nullptr;
  if (parent != nullptr) {
    block.parent = *parent;
    children_[*parent].push_back(name);
    const auto before = blocks_.find(*parent);
    if (before == blocks_.end() || before->second.id == 0) return;
  }
  announce(name);
}

void HostBlocks::announce(const BlockName& name) {
  std::vector<BlockName> left{name};
  while (!left.empty()) {
    const BlockName next = left.back();
    left.pop_back();
    Block& block = blocks_.at(next);
    block.id = next_id_++;
    if (PrefixObserver* observer = device_.observer_to_tell()) observer->stored(described(block));
    const std::vector<BlockName>& behind = children(next);
    left.insert(left.end(), behind.begin(), behind.end());
  }
}

void HostBlocks::withdraw(const BlockName& name) {
  std::vector<BlockName> left{name};
  while (!left.empty()) {
    const BlockName next = left.back();
    left.pop_back();
    Block& block = blocks_.at(next);
    if (block.id == 0) continue;
    const std::vector<BlockName>& behind = children(next);
    left.insert(left.end(), behind.begin(), behind.end());
    const uint64_t id = std::exchange(block.id, 0);
    if (PrefixObserver* observer = device_.observer_to_tell())
      observer->removed(id, int(block.tokens.size()), device_.blocks().unit(), PrefixMedium::host);
  }
}

void HostBlocks::remove(const BlockName& name) {
  const auto found = blocks_.find(name);
  if (found == blocks_.end()) return;
  withdraw(name);
  if (!found->second.first) {
    const auto siblings = children_.find(found->second.parent);
    std::erase(siblings->second, name);
    if (siblings->second.empty()) children_.erase(siblings);
  }
  blocks_.erase(found);
}

void HostBlocks::clear() {
  std::vector<BlockName> first;
  for (const auto& [name, block] : blocks_)
    if (block.first) first.push_back(name);
  for (const BlockName& name : first) withdraw(name);
  blocks_.clear();
  children_.clear();
}

void HostBlocks::announce_to(PrefixObserver& observer) const {
  std::vector<BlockName> left;
  for (const auto& [name, block] : blocks_)
    if (block.first) left.push_back(name);
  while (!left.empty()) {
    const BlockName name = left.back();
    left.pop_back();
    const Block& block = blocks_.at(name);
    if (block.id == 0) continue;
    observer.stored(described(block));
    const std::vector<BlockName>& behind = children(name);
    left.insert(left.end(), behind.begin(), behind.end());
  }
}

}  // namespace kivi
