// SPDX-License-Identifier: Apache-2.0
#include "study/bit_budget.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/verify.h"

namespace kivi {
namespace {

// A selection for the layers so far that no other beats in both bytes and cost.
struct State {
  int64_t bytes = 0;
  double cost = 0;
  int choice = 0;     // of the last of these layers
  size_t before = 0;  // the state of the layers before it
};

// Keeps the states that cost less than every state of fewer or equal bytes.
std::vector<State> undominated(std::vector<State> states) {
  std::ranges::stable_sort(states, [](const State& a, const State& b) {
    return a.bytes != b.bytes ? a.bytes < b.bytes : a.cost < b.cost;
  });
  std::vector<State> kept;
  for (const State& s : states)
    if (kept.empty() || s.cost < kept.back().cost) kept.push_back(s);
  return kept;
}

}  // namespace

Result<std::vector<int>> spend_budget(std::span<const std::vector<LayerChoice>> layers,
                                      int64_t budget) {
  // Bytes that the layers from here on take at least.
  std::vector<int64_t> least(layers.size() + 1);
  for (size_t i = layers.size(); i-- > 0;) {
    KIVI_VERIFY(!layers[i].empty());
    least[i] = least[i + 1] + std::ranges::min(layers[i], {}, &LayerChoice::bytes).bytes;
  }
  if (least[0] > budget)
    return Error{ErrorCode::invalid,
                 fmt::format("the budget is {} bytes, must be at least {}", budget, least[0])};
  std::vector<std::vector<State>> states = {{State{}}};
  for (size_t layer = 0; layer < layers.size(); ++layer) {
    std::vector<State> next;
    const std::vector<State>& last = states.back();
    for (size_t i = 0; i < last.size(); ++i)
      for (size_t c = 0; c < layers[layer].size(); ++c) {
        const LayerChoice& choice = layers[layer][c];
        const int64_t bytes = last[i].bytes + choice.bytes;
        if (bytes + least[layer + 1] <= budget)
          next.push_back({bytes, last[i].cost + choice.cost, int(c), i});
      }
    states.push_back(undominated(std::move(next)));
  }
  // Costs fall as bytes grow, so the last state is the best one.
  std::vector<int> choices(layers.size());
  size_t at = states.back().size() - 1;
  for (size_t layer = layers.size(); layer-- > 0;) {
    const State& s = states[layer + 1][at];
    choices[layer] = s.choice;
    at = s.before;
  }
  return choices;
}

}  // namespace kivi
