// SPDX-License-Identifier: Apache-2.0
// The plan of attend_shared, made once a step: the line of work, its pieces, and where each segment
// of kv_attend_decode finds the states that are its. Test: tests/cuda/kv_attend_test.cpp.
#include "kernels/cuda/kv_attend_shared.h"

namespace kivi::cuda {
namespace {

constexpr int kPlanThreads = 1024;

// As many pieces as make their borders those of items, or the other way round, if that leaves few
// blocks idle. Then an item has fewer states.
__device__ int pieces_of(int items, int work, int blocks) {
  const int each = (items + blocks - 1) / max(1, blocks);
  const int used = items >= blocks ? (items + each - 1) / each : blocks / max(1, items) * items;
  return max(1, min(work, used * 32 >= blocks * 31 ? used : blocks));
}

// Fills a.plan and a.where. One block.
__global__ void __launch_bounds__(kPlanThreads, 1)
    plan_shared_kernel(const __grid_constant__ SharedLaunch a, int blocks) {
  __shared__ GroupWork groups[kSharedGroupsMax];
  __shared__ int each, rest;
  const DecodeLaunch& d = a.decode;
  for (int i = threadIdx.x; i < a.group_capacity; i += kPlanThreads) {
    const StepGroup s = a.groups[i];
    const int units = s.member_count * d.head_blocks;
    const int first = s.member_count > 0 ? a.members[s.members_begin] : 0;
    groups[i] = {0,
                 0,
                 (units + a.units_tile - 1) / a.units_tile,
                 s.pages + a.sink_pages,
                 s.pages_begin,
                 s.members_begin,
                 units,
                 d.sequences[first].slot};
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    int items = 0, work = 0;
    for (int i = 0; i < a.group_capacity; ++i) {
      GroupWork& g = groups[i];
      g.item_base = items, g.work_base = work;
      items += g.tiles * d.kv_heads;
      work += g.tiles * d.kv_heads * g.pages;
    }
    const int pieces = pieces_of(items, work, blocks);
    each = work / pieces, rest = work % pieces;
    a.plan->total = work, a.plan->pieces = pieces;
    a.plan->each = each, a.plan->rest = rest;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < a.group_capacity; i += kPlanThreads) a.plan->group[i] = groups[i];
  const auto owner = [&](int x) {          // the piece that has place x of the line
    const int longer = rest * (each + 1);  // places of the pieces that have a page more
    return x < longer ? x / (each + 1) : rest + (x - longer) / each;
  };
  for (int group = 0; group < a.group_capacity; ++group) {
    const GroupWork& g = groups[group];
    for (int i = threadIdx.x; i < g.units * d.kv_heads; i += kPlanThreads) {
      const int unit = i / d.kv_heads, head = i % d.kv_heads;
      const int member = unit / d.head_blocks, block = unit % d.head_blocks;
      const int sequence = a.members[g.members_begin + member];
      if (head == 0 && block == 0)
        a.plan->row[g.members_begin + member] = d.sequences[sequence].row_begin;
      const int item = head * g.tiles + unit / a.units_tile;
      const int begin = g.work_base + item * g.pages, first = owner(begin);
      const int parts = owner(begin + g.pages - 1) - first + 1;
      a.where[(int64_t(sequence) * d.kv_heads + head) * d.head_blocks + block] = make_int2(
          g.item_base + item + first, parts * kSharedRows + unit % a.units_tile * a.unit_rows);
    }
  }
}

}  // namespace

size_t shared_plan_bytes(int sequences) {
  return sizeof(SharedPlan) + size_t(sequences) * sizeof(int32_t);
}

cudaError_t plan_shared(const SharedLaunch& a, int blocks, cudaStream_t stream) {
  plan_shared_kernel<<<1, kPlanThreads, 0, stream>>>(a, blocks);
  return cudaGetLastError();
}

}  // namespace kivi::cuda
