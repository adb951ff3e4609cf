// SPDX-License-Identifier: Apache-2.0
#include "server/kv_event_batch.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "base/verify.h"

namespace kivi {
namespace {

using nlohmann::json;

// As the scores of a router know them. The memory of the device is "GPU", also on the CPU.
const char* name_of(PrefixMedium medium) { return medium == PrefixMedium::host ? "CPU" : "GPU"; }

constexpr uint64_t kUnitsMax = 1 << 16;  // of one block

int units_of(const KvEvent& event) {
  KIVI_VERIFY(event.unit > 0 && event.token_count % event.unit == 0);
  return event.token_count / event.unit;
}

void append_hashes(json& out, const KvEvent& event, const BlockHashes& hashes) {
  for (int unit = units_of(event); unit-- > 0;) out.push_back(hashes.of(event.id, unit));
}

json stored(const KvEvent& event, const BlockHashes& hashes) {
  json own = json::array();
  append_hashes(own, event, hashes);
  const json parent = event.parent == 0 ? json(nullptr) : json(hashes.of(event.parent, 0));
  // The tag, hashes, parent, tokens, tokens of a hash; LoRA's id; medium; LoRA's name; extra keys.
  return json::array({"BlockStored", std::move(own), parent, event.tokens, event.unit, nullptr,
                      name_of(event.medium), nullptr, nullptr});
}

}  // namespace

// SplitMix64's finalizer (Steele, Lea, Flood 2014) is a bijection, so no two units share a hash.
uint64_t BlockHashes::of(uint64_t block, int from_end) const {
  KIVI_VERIFY(uint64_t(from_end) < kUnitsMax);
  uint64_t x = secret_ + block * kUnitsMax + uint64_t(from_end);
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

std::string encode_kv_batch(double time, std::span<const KvEvent> events,
                            const BlockHashes& hashes) {
  json list = json::array();
  for (size_t i = 0; i < events.size(); ++i) {
    switch (events[i].kind) {
      case KvEvent::Kind::stored:
        list.push_back(stored(events[i], hashes));
        break;
      case KvEvent::Kind::removed: {
        json gone = json::array();  // of all removals in a row
        const PrefixMedium medium = events[i].medium;
        for (; i < events.size() && events[i].kind == KvEvent::Kind::removed &&
               events[i].medium == medium;
             ++i)
          append_hashes(gone, events[i], hashes);
        --i;
        list.push_back(json::array({"BlockRemoved", std::move(gone), name_of(medium)}));
        break;
      }
      case KvEvent::Kind::cleared:
        list.push_back(json::array({"AllBlocksCleared"}));
        break;
      case KvEvent::Kind::lost:
        break;
    }
  }
  std::string bytes;
  json::to_msgpack(json::array({time, std::move(list), nullptr}), bytes);
  return bytes;
}

}  // namespace kivi
