// SPDX-License-Identifier: Apache-2.0
#include "engine/model/step_input.h"

#include <algorithm>
#include <cstring>

#include "engine/sequence.h"

namespace kivi {

namespace {

constexpr size_t kAlignmentWords = 64;  // every part starts on a multiple of 256 bytes
constexpr size_t kSequenceWords = sizeof(StepSequence) / sizeof(int32_t);

constexpr size_t kGroupWords = sizeof(StepGroup) / sizeof(int32_t);

// A group has two members at least.
size_t groups_max(size_t sequences) { return sequences / 2; }

size_t aligned(size_t words) {
  return (words + kAlignmentWords - 1) / kAlignmentWords * kAlignmentWords;
}

}  // namespace

int64_t StepInput::device_bytes(const Limits& limits) {
  const size_t rows = aligned(size_t(limits.rows));
  const size_t words = 4 * rows + aligned(size_t(limits.sequences) * kSequenceWords) +
                       aligned(size_t(limits.captures) * kSequenceWords) +
                       aligned(groups_max(size_t(limits.sequences)) * kGroupWords) +
                       aligned(size_t(limits.sequences)) + aligned(size_t(limits.page_entries));
  return int64_t(words * sizeof(int32_t));
}

Result<StepInput> StepInput::create(Backend& backend, const Limits& limits) {
  StepInput input;
  input.backend_ = &backend;
  input.limits_ = limits;
  KIVI_ASSIGN_OR_RETURN(input.device_,
                        backend.allocate(size_t(device_bytes(limits)), "the step's input"));
  input.packed_.reserve(input.device_.bytes() / sizeof(int32_t));
  return input;
}

void StepInput::fill(const BatchPlan& plan, const KvLayout& layout, int rows_padded) {
  packed_.clear();
  ids_.clear();
  positions_.clear();
  lengths_.clear();
  gather_.clear();
  page_table_.clear();
  sequences_.clear();
  captures_.clear();
  wanted_.clear();
  view_ = StepView{};
  for (size_t i = 0; i < plan.sequences.size(); ++i) add(plan.sequences[i], int(i), layout);
  for (const PlannedCapture& capture : plan.captures)
    add(capture, plan.sequences[size_t(capture.planned)], layout);

  group(layout, std::max(int(sequences_.size()), rows_padded));

  KIVI_VERIFY(int(ids_.size()) == plan.rows);
  for (int row = plan.rows; row < rows_padded; ++row) {
    ids_.push_back(0);
    positions_.push_back(0);
    lengths_.push_back(1);
    gather_.push_back(row);
    sequences_.push_back({});
  }
  view_.rows = int(ids_.size());
  KIVI_VERIFY(view_.rows <= limits_.rows);
  KIVI_VERIFY(int(sequences_.size()) <= limits_.sequences);
  KIVI_VERIFY(int(captures_.size()) <= limits_.captures);
  KIVI_VERIFY(int64_t(page_table_.size()) <= limits_.page_entries);
  view_.sequences = sequences_;
  view_.page_table = page_table_;
  view_.captures = captures_;
  view_.token_ids = make_tensor(pack(ids_.data(), ids_.size()), DType::i32, view_.rows);
  view_.positions = make_tensor(pack(positions_.data(), positions_.size()), DType::i32, view_.rows);
  view_.rope_lengths = make_tensor(pack(lengths_.data(), lengths_.size()), DType::i32, view_.rows);
  view_.device_sequences =
      make_tensor(pack(sequences_.data(), sequences_.size() * kSequenceWords), DType::i32,
                  int64_t(sequences_.size()), int64_t(kSequenceWords));
  view_.device_captures =
      make_tensor(pack(captures_.data(), captures_.size() * kSequenceWords), DType::i32,
                  int64_t(captures_.size()), int64_t(kSequenceWords));
  if (!groups_.groups.empty()) {
    // Padded, so that steps of equal shape have equal addresses.
    view_.groups = groups_.groups;
    view_.group_members = groups_.members;
    std::vector<StepGroup> padded = groups_.groups;
    padded.resize(size_t(groups_rows_));
    view_.device_groups = make_tensor(pack(padded.data(), padded.size() * kGroupWords), DType::i32,
                                      groups_rows_, int64_t(kGroupWords));
    std::vector<int32_t> members = groups_.members;
    members.resize(sequences_.size());
    view_.device_group_members =
        make_tensor(pack(members.data(), members.size()), DType::i32, int64_t(members.size()));
  }
  rows_ = make_tensor(pack(gather_.data(), gather_.size()), DType::i32, int64_t(gather_.size()));
  view_.device_page_table = make_tensor(pack(page_table_.data(), page_table_.size()), DType::i32,
                                        int64_t(page_table_.size()));
  backend_->upload(device_.data(), packed_.data(), packed_.size() * sizeof(int32_t));
}

void StepInput::add(const PlannedSequence& planned, int index, const KvLayout& layout) {
  const Sequence& sequence = *planned.sequence;
  const int end = planned.past + planned.count;
  StepSequence s;
  s.row_begin = int32_t(ids_.size());
  s.row_count = planned.count;
  s.past = planned.past;
  s.slot = sequence.kv.slot;
  s.mode = planned.mode;
  s.values_from = sequence.kv.values_stored;
  s.values_to = planned.values_to;

  int staging = 0;
  if (planned.mode == KvMode::stage) staging = KvLayout::staging_pages_for(end);
  if (planned.mode == KvMode::seal) staging = KvLayout::staging_pages_for(planned.past);
  add_pages(sequence, planned.mode == KvMode::stage ? 0 : layout.pages_for(end), staging, s);

  for (int position = planned.past; position < end; ++position) {
    const int32_t row = int32_t(ids_.size());
    const int32_t id = sequence.tokens[size_t(position)];
    ids_.push_back(id >= 0 ? id : -1 - sequence.sampled_row);
    positions_.push_back(position);
    lengths_.push_back(std::max(position + 1, sequence.prompt_tokens));
    const bool scored = planned.scores_prompt && position + 1 < sequence.prompt_tokens;
    const bool sampled = planned.samples && position + 1 == end;
    KIVI_VERIFY(!(scored && sampled));
    if (!scored && !sampled) continue;
    gather_.push_back(row);
    wanted_.push_back({index, position, scored});
  }
  sequences_.push_back(s);
}

// A capture of a chunk that is staged, or that seals, is sealed up to its own last token.
void StepInput::add(const PlannedCapture& capture, const PlannedSequence& planned,
                    const KvLayout& layout) {
  KIVI_VERIFY(planned.past < capture.tokens && capture.tokens <= planned.past + planned.count);
  StepSequence s = sequences_[size_t(capture.planned)];
  s.row_count = capture.tokens - planned.past;
  s.slot = capture.slot;
  if (planned.mode == KvMode::stage) s.mode = KvMode::seal;
  s.values_to = capture.values_to;
  const int staging = s.mode == KvMode::seal ? KvLayout::staging_pages_for(planned.past) : 0;
  add_pages(*planned.sequence, layout.pages_for(capture.tokens), staging, s);
  captures_.push_back(s);
}

void StepInput::add_pages(const Sequence& sequence, int pages, int staging, StepSequence& s) {
  const SequenceKv& kv = sequence.kv;
  KIVI_VERIFY(pages <= int(kv.pages.size()));
  KIVI_VERIFY(kv.layerwise || staging <= int(kv.staging_pages.size()));
  s.pages_begin = int32_t(page_table_.size());
  s.pages_count = pages;
  page_table_.insert(page_table_.end(), kv.pages.begin(), kv.pages.begin() + pages);
  s.staging_begin = int32_t(page_table_.size());
  s.staging_count = staging;
  // The area of prompts that are computed layer by layer is theirs alone, from its first page on.
  if (kv.layerwise)
    for (int page = 0; page < staging; ++page) page_table_.push_back(page);
  else
    page_table_.insert(page_table_.end(), kv.staging_pages.begin(),
                       kv.staging_pages.begin() + staging);
}

void StepInput::group(const KvLayout& layout, int sequences) {
  find_page_groups(sequences_, page_table_, layout, found_);
  groups_.groups.clear();
  groups_.members.clear();
  if (found_.groups.empty()) return;
  const KeptGroups kept_groups = backend_->keep_groups(
      layout, limits_.heads_q, rests_of(found_, sequences_, layout), found_.groups);
  view_.whole_rests = kept_groups.whole_rests;
  groups_rows_ = std::min(int64_t(kept_groups.most), int64_t(groups_max(size_t(sequences))));
  for (StepGroup kept : found_.groups) {
    const auto members =
        std::span(found_.members).subspan(size_t(kept.members_begin), size_t(kept.member_count));
    kept.members_begin = int32_t(groups_.members.size());
    groups_.members.insert(groups_.members.end(), members.begin(), members.end());
    groups_.groups.push_back(kept);
    for (const int32_t i : members) sequences_[size_t(i)].shared_pages = kept.pages;
  }
  KIVI_VERIFY(int64_t(groups_.groups.size()) <= groups_rows_);
}

int32_t* StepInput::pack(const void* source, size_t count) {
  const size_t begin = packed_.size();
  packed_.resize(begin + aligned(count));
  if (count > 0) std::memcpy(packed_.data() + begin, source, count * sizeof(int32_t));
  return reinterpret_cast<int32_t*>(device_.data()) + begin;
}

}  // namespace kivi
