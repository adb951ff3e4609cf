// SPDX-License-Identifier: Apache-2.0
// find_page_groups: which sequences of a step have the same first pages, so that decode attention
// may read these once for all of them (StepGroup).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/kv_page.h"
#include "kernels/step_view.h"

namespace kivi {

struct PageGroups {
  std::vector<StepGroup> groups;
  std::vector<int32_t> members;  // indices of sequences, group after group
};

// Finds groups among the sequences of one new token in mode `append`. Each sequence is in one group
// at most. Among sequences with the same first page, the first group is the one that saves the most
// reads of pages. The sequences that it leaves out are then grouped in the same way. For all
// members of a group, the keys and values of its pages are in the pages and not in the residual.
//
// Costs a sort of the sequences, and a comparison of each page table with one or two others. The
// result depends on the arguments alone.
void find_page_groups(std::span<const StepSequence> sequences, std::span<const int32_t> page_table,
                      const KvLayout& layout, PageGroups& found);

// What the members attend to beside the pages that they share.
GroupRests rests_of(const PageGroups& found, std::span<const StepSequence> sequences,
                    const KvLayout& layout);

}  // namespace kivi
