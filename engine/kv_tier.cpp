// SPDX-License-Identifier: Apache-2.0
#include "engine/kv_tier.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/verify.h"

namespace kivi {
namespace {

constexpr size_t kFetchesMax = 16;
// Jobs of the disk at a time. Each read job has host pages that nothing else can use meanwhile.
constexpr size_t kJobsMax = 16;

// Where a sequence can be continued, and the pages to fetch for it.
struct FetchEnd {
  int tokens = 0;
  int pages = 0;
  int disk_pages = 0;  // of these, those on disk
};

// Chooses the end that spares the most time, where `have` tokens need not be computed.
FetchReach choose_end(std::span<const FetchEnd> ends, int have, const FetchRates& rates) {
  if (ends.empty()) return {};
  const FetchEnd& longest = ends.back();
  // Nothing is known to be slow before it was measured.
  if (rates.tokens == 0 || rates.pages == 0) return {longest.tokens, longest.tokens, 0, 0};
  // What comes from disk is copied twice.
  const auto fetch_seconds = [&](const FetchEnd& e) {
    return e.pages / rates.pages + (rates.disk_pages > 0 ? e.disk_pages / rates.disk_pages : 0);
  };
  const auto compute_seconds = [&](const FetchEnd& e) { return (e.tokens - have) / rates.tokens; };
  const auto gain = [&](const FetchEnd& e) { return compute_seconds(e) - fetch_seconds(e); };
  const FetchEnd& best = *std::ranges::max_element(ends, {}, gain);
  const bool worth = gain(best) > 0;
  const FetchEnd& told = worth ? best : longest;
  return {longest.tokens, worth ? best.tokens : 0, fetch_seconds(told), compute_seconds(told)};
}

}  // namespace

KvTier::KvTier(PrefixCache& device, KvTierSetup setup)
    : device_(device),
      memory_(std::move(setup.memory)),
      disk_(std::move(setup.disk)),
      namer_(setup.secret, setup.fingerprint),
      announced_(device),
      host_(setup.host_pages) {}

KvTier::~KvTier() = default;

int KvTier::piece_pages(PieceKind kind) const {
  const PrefixBlocks& blocks = device_.blocks();
  return blocks.block_pages + (kind == PieceKind::checkpoint ? blocks.slab_pages : 0);
}

KvTier::Place KvTier::place_of(const PieceKey& key) const {
  if (const auto found = pieces_.find(key); found != pieces_.end())
    return found->second.doomed ? Place::none : Place::host;
  const bool on_disk =
      disk_ != nullptr && disk_->contains(key) && piece_pages(key.kind) <= host_.total();
  return on_disk ? Place::disk : Place::none;
}

// --- host pages
// -----------------------------------------------------------------------------------

void KvTier::touch(Piece& piece) { by_age_.splice(by_age_.end(), by_age_, piece.age); }

// The first blocks of a path become younger than those after them, which are of no use alone.
void KvTier::touch_path(const SequenceKv& kv, int blocks) {
  for (int k = blocks - 1; k >= 0; --k)
    if (const auto found = pieces_.find({kv.names[size_t(k)], PieceKind::block});
        found != pieces_.end())
      touch(found->second);
}

bool KvTier::take_host(int count, std::vector<int32_t>& pages) {
  auto oldest = by_age_.begin();
  while (host_.free() < count) {
    while (oldest != by_age_.end() && pieces_.at(*oldest).pins > 0) ++oldest;
    if (oldest == by_age_.end()) return false;
    drop(pieces_.find(*oldest++));
  }
  return host_.take(count, pages);
}

KvTier::Pieces::iterator KvTier::add_piece(const PieceKey& key, std::vector<int32_t> pages) {
  const auto age = by_age_.insert(by_age_.end(), key);
  const auto [piece, is_new] = pieces_.emplace(key, Piece{.pages = std::move(pages), .age = age});
  KIVI_VERIFY(is_new);
  return piece;
}

void KvTier::drop(Pieces::iterator piece) {
  KIVI_VERIFY(piece->second.pins == 0);
  for (const int32_t page : piece->second.pages) host_.give_back(page);
  by_age_.erase(piece->second.age);
  const PieceKey key = piece->first;
  pieces_.erase(piece);
  const auto other = key.kind == PieceKind::block ? PieceKind::checkpoint : PieceKind::block;
  if (!pieces_.contains({key.name, other})) announced_.remove(key.name);
}

// --- writing behind
// -------------------------------------------------------------------------------

void KvTier::extend_names(SequenceKv& kv, std::span<const int32_t> tokens,
                          std::string_view salt) const {
  if (!on()) return;
  const int whole = device_.blocks().whole(int(tokens.size()));
  for (int k = int(kv.names.size()); k < whole; ++k)
    kv.names.push_back(namer_.next(k == 0 ? namer_.root(salt) : kv.names[size_t(k) - 1],
                                   device_.tokens_of(k, tokens)));
}

void KvTier::offer(SequenceKv& kv, std::span<const int32_t> known, std::string_view salt) {
  if (!on()) return;
  const PrefixBlocks& blocks = device_.blocks();
  extend_names(kv, known, salt);
  const auto pages_of = [&](int k) {
    return std::span(kv.pages).subspan(size_t(k * blocks.block_pages), size_t(blocks.block_pages));
  };
  const int offered = kv.offered;
  for (int k = kv.offered;
       blocks.end(k) <= int(known.size()) && blocks.end(k) + blocks.behind <= kv.settled;
       kv.offered = ++k) {
    put({kv.names[size_t(k)], PieceKind::block}, pages_of(k), {}, false, true);
    announce(kv, k, known, salt);
  }
  for (const CapturedSlab& captured : kv.captured)
    if (captured.settled && captured.tokens <= int(known.size()))
      put_checkpoint(kv, known, salt, captured);
  if (kv.offered > offered) touch_path(kv, kv.offered);
}

// The blocks before the checkpoint have their values in pages, even where the sequence is still
// being staged and writes the same ones again at its end. The checkpoint's own block gets its
// values while the sequence goes on. Steps that come next wait until both have been read.
void KvTier::put_checkpoint(SequenceKv& kv, std::span<const int32_t> known, std::string_view salt,
                            const CapturedSlab& captured) {
  const PrefixBlocks& blocks = device_.blocks();
  const int last = blocks.whole(captured.tokens) - 1;
  const size_t block_pages = size_t(blocks.block_pages);
  if (kv.pages.size() < size_t(last + 1) * block_pages) return;
  const auto pages_of = [&](int k) {
    return std::span(kv.pages).subspan(size_t(k) * block_pages, block_pages);
  };
  for (int k = kv.offered; k < device_.first_behind(last); ++k) {
    put({kv.names[size_t(k)], PieceKind::block}, pages_of(k), {}, true, true);
    announce(kv, k, known, salt);
  }
  put({kv.names[size_t(last)], PieceKind::checkpoint}, pages_of(last), captured.pages, true,
      !captured.rolling);
  announce(kv, last, known, salt);
  touch_path(kv, last);
  if (!captured.rolling) return;
  if (kv.rolling_block >= 0 && kv.rolling_block != last) {
    const auto before = pieces_.find({kv.names[size_t(kv.rolling_block)], PieceKind::checkpoint});
    if (before != pieces_.end() && before->second.rolling && before->second.pins == 0) drop(before);
  }
  kv.rolling_block = last;
}

bool KvTier::holds(const BlockName& name) const {
  return std::ranges::any_of(std::array{PieceKind::block, PieceKind::checkpoint},
                             [&](PieceKind kind) {
                               const auto found = pieces_.find({name, kind});
                               return found != pieces_.end() && !found->second.doomed;
                             });
}

// Only requests of the same salt may know of a block.
void KvTier::announce(const SequenceKv& kv, int k, std::span<const int32_t> known,
                      std::string_view salt) {
  if (!salt.empty() || !announced_.observed()) return;
  const BlockName& name = kv.names[size_t(k)];
  if (holds(name))
    announced_.add(name, k == 0 ? nullptr : &kv.names[size_t(k) - 1], device_.tokens_of(k, known));
}

void KvTier::put(const PieceKey& key, std::span<const int32_t> block, std::span<const int32_t> slab,
                 bool may_change, bool to_disk) {
  if (const auto found = pieces_.find(key); found != pieces_.end()) {
    touch(found->second);
    if (to_disk && std::exchange(found->second.rolling, false)) write_later(key);
    return;
  }
  std::vector<int32_t> pages;
  if (!take_host(piece_pages(key.kind), pages)) return;
  const auto piece = add_piece(key, std::move(pages));
  piece->second.batch = next_batch();
  piece->second.rolling = !to_disk;
  size_t i = 0;
  for (const std::span<const int32_t> from : {block, slab})
    for (const int32_t page : from) {
      transfers_.push_back({KvTransfer::To::host, page, piece->second.pages[i++]});
      device_.note_transfer(page, next_batch());
    }
  KIVI_VERIFY(i == piece->second.pages.size());
  counted_.pages_to_host += i;
  if (may_change) awaited_ = next_batch();
  if (to_disk) write_later(key);
}

void KvTier::write_later(const PieceKey& key) {
  if (disk_ != nullptr && disk_->writes() && !disk_->contains(key)) to_write_.push_back(key);
}

void KvTier::settle(SequenceKv& kv) {
  if (kv.rolling_block < 0) return;
  const PieceKey key{kv.names[size_t(kv.rolling_block)], PieceKind::checkpoint};
  kv.rolling_block = -1;
  const auto piece = pieces_.find(key);
  if (piece == pieces_.end() || !piece->second.rolling) return;
  piece->second.rolling = false;
  write_later(key);
}

// --- bringing back
// --------------------------------------------------------------------------------

FetchRates KvTier::rates() const {
  return {0, copies_.per_second(), disk_ == nullptr ? 0 : disk_->pages_read_per_second()};
}

FetchReach KvTier::reach(const SequenceKv& kv, std::span<const int32_t> tokens,
                         std::string_view salt, const PrefixMatch& match, int limit, int first_end,
                         int grid, const FetchRates& rates) const {
  if (!on()) return {};
  const PrefixBlocks& blocks = device_.blocks();
  const int whole = blocks.whole(limit);
  const int on_device = device_.complete_blocks(kv, tokens, salt, whole);
  const auto with = [&](FetchEnd sum, Place place, PieceKind kind) {
    sum.pages += piece_pages(kind);
    sum.disk_pages += place == Place::disk ? piece_pages(kind) : 0;
    return sum;
  };
  // The checkpoint's piece has the pages of its own block too.
  const PieceKind last = blocks.slab_pages == 0 ? PieceKind::block : PieceKind::checkpoint;
  std::vector<FetchEnd> ends;
  FetchEnd before;  // the blocks before k
  for (int k = 0; k < whole; ++k) {
    const BlockName& name = kv.names[size_t(k)];
    const bool here = k < on_device;
    const Place block = here ? Place::host : place_of({name, PieceKind::block});
    const Place place = last == PieceKind::block ? block : place_of({name, last});
    const FetchEnd through = here ? before : with(before, block, PieceKind::block);
    const int end = blocks.end(k);
    const bool on_grid = grid == 0 || (end >= first_end && (end - first_end) % grid == 0);
    if (place != Place::none && on_grid && end > match.tokens) {
      ends.push_back(last == PieceKind::block ? through : with(before, place, last));
      ends.back().tokens = end;
    }
    if (block == Place::none) break;
    before = through;
  }
  return choose_end(ends, match.tokens, rates);
}

int KvTier::extra_pages() const {
  const PrefixBlocks& blocks = device_.blocks();
  return blocks.slab_pages == 0 ? 0 : blocks.slab_pages + blocks.block_pages;
}

bool KvTier::fetch(Sequence& s, int end, std::string_view salt) {
  if (fetches_.size() >= kFetchesMax) return false;
  const PrefixBlocks& blocks = device_.blocks();
  const size_t block_pages = size_t(blocks.block_pages);
  const int last = blocks.whole(end) - 1;
  const bool checkpoint = blocks.slab_pages > 0;
  const int complete = checkpoint ? last : last + 1;
  Fetch fetch{.sequence = &s, .salt = std::string(salt), .end = end};
  const int on_device = device_.hold_complete(s.kv, s.tokens, salt, complete, fetch.pages);
  const int taken = (last + 1 - on_device) * blocks.block_pages;
  const bool has_room =
      device_.take(taken, fetch.pages, PrefixCache::Writer::transfer) &&
      device_.take(blocks.slab_pages, fetch.checkpoint, PrefixCache::Writer::transfer);
  if (!has_room) {
    give_back(fetch);
    return false;
  }
  const auto pages_of = [&](int k) {
    const auto begin = fetch.pages.begin() + std::ptrdiff_t(size_t(k) * block_pages);
    return std::vector<int32_t>(begin, begin + std::ptrdiff_t(block_pages));
  };
  const auto tokens_of = [&](int k) { return k == 0 ? blocks.first : blocks.block; };
  for (int k = on_device; k < complete; ++k)
    fetch.parts.push_back({{s.kv.names[size_t(k)], PieceKind::block}, pages_of(k), tokens_of(k)});
  if (checkpoint) {
    Part part{{s.kv.names[size_t(last)], PieceKind::checkpoint}, pages_of(last), tokens_of(last)};
    part.pages.insert(part.pages.end(), fetch.checkpoint.begin(), fetch.checkpoint.end());
    fetch.parts.push_back(std::move(part));
  }
  touch_path(s.kv, complete);
  ++s.fetches;
  ++counted_.fetches;
  copy_parts(fetches_.emplace_back(std::move(fetch)));
  return true;
}

void KvTier::copy_parts(Fetch& fetch) {
  for (Part& part : fetch.parts) {
    if (part.copied) continue;
    const auto found = pieces_.find(part.key);
    if (found == pieces_.end() || found->second.loading || found->second.doomed) continue;
    touch(found->second);
    for (size_t i = 0; i < part.pages.size(); ++i) {
      transfers_.push_back({KvTransfer::To::device, part.pages[i], found->second.pages[i]});
      device_.note_transfer(part.pages[i], next_batch());
    }
    part.copied = true;
    fetch.batch = next_batch();
    counted_.pages_to_device += part.pages.size();
    counted_.tokens_fetched += uint64_t(part.tokens);
    if (found->second.from_disk) counted_.tokens_fetched_disk += uint64_t(part.tokens);
  }
}

bool KvTier::load_parts(const Fetch& fetch) {
  for (const Part& part : fetch.parts) {
    if (part.copied || pieces_.contains(part.key)) continue;
    if (disk_ == nullptr || !disk_->contains(part.key)) return false;
    std::vector<int32_t> pages;
    if (jobs_.size() >= kJobsMax || !take_host(piece_pages(part.key.kind), pages)) return true;
    Piece& piece = add_piece(part.key, std::move(pages))->second;
    piece.pins = 1;
    piece.loading = piece.from_disk = true;
    jobs_.emplace(disk_->read(part.key, piece.pages), Job{part.key, false});
  }
  return true;
}

bool KvTier::fetching(const Sequence& s) const {
  return std::ranges::any_of(fetches_,
                             [&](const Fetch& f) { return f.sequence == &s && !f.ready; });
}

bool KvTier::fetched_by_other(const Sequence& s, int end) const {
  const size_t last = size_t(device_.blocks().whole(end) - 1);
  return std::ranges::any_of(fetches_, [&](const Fetch& f) {
    const SequenceKv& kv = f.sequence->kv;
    return !f.ready && f.sequence != &s && f.end >= end && kv.names.size() > last &&
           kv.names[last] == s.kv.names[last];
  });
}

void KvTier::adopt(Fetch& fetch) {
  const Sequence& s = *fetch.sequence;
  for (const int32_t page : fetch.checkpoint) device_.hold(page);
  device_.adopt(s.kv, s.tokens, fetch.salt, fetch.end, fetch.pages, fetch.checkpoint);
  fetch.ready = true;
}

void KvTier::give_back(Fetch& fetch) {
  for (const int32_t page : fetch.checkpoint) device_.drop(page);
  for (auto page = fetch.pages.rbegin(); page != fetch.pages.rend(); ++page) device_.drop(*page);
}

void KvTier::release(const Sequence& s) {
  for (auto it = fetches_.begin(); it != fetches_.end(); ++it) {
    if (it->sequence != &s) continue;
    counted_.fetches_failed += it->ready ? 0 : 1;
    give_back(*it);
    fetches_.erase(it);
    return;
  }
}

bool KvTier::abandon_one() {
  if (fetches_.empty()) return false;
  ++counted_.fetches_failed;
  give_back(fetches_.back());
  fetches_.pop_back();
  return true;
}

void KvTier::abandon_all() {
  while (abandon_one()) {
  }
}

// --- steps
// ----------------------------------------------------------------------------------------

void KvTier::advance(uint64_t batches, double seconds) {
  Batch ended;  // all that have ended since the last call
  for (; done_ < batches; ++done_, batches_.pop_front()) {
    ended.pages += batches_.front().pages;
    ended.fetches |= batches_.front().fetches;
  }
  // A fetch waits for what is copied to the host in its batch, so that counts too.
  if (ended.fetches) copies_.add(ended.pages, seconds - copied_seconds_);
  copied_seconds_ = seconds;
  if (!on()) return;
  if (disk_ != nullptr) finish_jobs();
  // What has been loaded is copied before anything else is loaded in its place.
  for (Fetch& fetch : fetches_)
    if (!fetch.ready) copy_parts(fetch);
  for (auto it = fetches_.begin(); it != fetches_.end();) {
    Fetch& fetch = *it;
    const bool copied = std::ranges::all_of(fetch.parts, &Part::copied);
    if (!fetch.ready && copied && fetch.batch <= done_) adopt(fetch);
    if (copied || load_parts(fetch)) {
      ++it;
      continue;
    }
    ++counted_.fetches_failed;
    give_back(fetch);
    it = fetches_.erase(it);
  }
  start_writes();
}

void KvTier::finish_jobs() {
  std::vector<PieceStore::Done> done;
  disk_->poll(done);
  for (const PieceStore::Done& d : done) {
    const auto job = jobs_.find(d.job);
    KIVI_VERIFY(job != jobs_.end());
    const auto found = pieces_.find(job->second.key);
    KIVI_VERIFY(found != pieces_.end());
    Piece& piece = found->second;
    --piece.pins;
    const bool lost = !job->second.writes && !d.ok;
    piece.loading = false;
    if (lost || (piece.doomed && piece.pins == 0)) drop(found);
    jobs_.erase(job);
  }
}

void KvTier::start_writes() {
  while (!to_write_.empty() && jobs_.size() < kJobsMax / 2) {
    const PieceKey key = to_write_.front();
    const auto found = pieces_.find(key);
    const bool gone = found == pieces_.end() || found->second.doomed || found->second.loading;
    if (!gone && found->second.batch > done_) return;
    to_write_.pop_front();
    if (gone || disk_->contains(key)) continue;
    ++found->second.pins;
    jobs_.emplace(disk_->write(key, found->second.pages), Job{key, true});
  }
}

void KvTier::hand_over(BatchPlan& plan) {
  if (!transfers_.empty()) {
    const bool fetches = std::ranges::any_of(
        transfers_, [](const KvTransfer& t) { return t.to == KvTransfer::To::device; });
    batches_.push_back({int(transfers_.size()), fetches});
    plan.transfers = std::exchange(transfers_, {});
    ++handed_over_;
  }
  if (plan.empty()) return;
  const uint64_t awaited = std::max(device_.take_awaited_batch(), std::exchange(awaited_, 0));
  plan.after_transfers = awaited > done_ ? awaited : 0;
}

bool KvTier::busy() const {
  const bool waits = std::ranges::any_of(fetches_, [](const Fetch& f) { return !f.ready; });
  return waits || !transfers_.empty() || !to_write_.empty() || !jobs_.empty();
}

void KvTier::forget_all() {
  abandon_all();
  announced_.clear();
  to_write_.clear();
  for (auto it = pieces_.begin(); it != pieces_.end();) {
    const auto piece = it++;
    if (piece->second.pins > 0)
      piece->second.doomed = true;
    else
      drop(piece);
  }
}

void KvTier::forget_on_disk(std::span<const BlockName> names) {
  if (disk_ == nullptr) return;
  for (const BlockName& name : names)
    for (const PieceKind kind : {PieceKind::block, PieceKind::checkpoint})
      disk_->erase({name, kind});
}

std::vector<int32_t> KvTier::pages_of_fetches() const {
  std::vector<int32_t> pages;
  for (const Fetch& fetch : fetches_)
    for (const auto* part : {&fetch.pages, &fetch.checkpoint})
      pages.insert(pages.end(), part->begin(), part->end());
  return pages;
}

std::vector<int32_t> KvTier::pages_of_pieces() const {
  std::vector<int32_t> pages;
  for (const auto& [unused, piece] : pieces_)
    pages.insert(pages.end(), piece.pages.begin(), piece.pages.end());
  return pages;
}

KvTierStats KvTier::stats() const {
  KvTierStats stats = counted_;
  stats.host_pages_total = host_.total();
  stats.host_pages_used = host_.total() - host_.free();
  if (disk_ != nullptr) stats.disk = disk_->stats();
  return stats;
}

}  // namespace kivi
