// SPDX-License-Identifier: Apache-2.0
// KvDisk keeps pieces of the prefix cache as files of one folder (docs/design/kv-tiers.md,
// section 4). Files are named after what they hold, so they never change. Threads of its own read
// and write them. One server writes to a folder at a time; others may read from it.
//
// Any failure costs the cache, not a request: a piece that cannot be written is not kept, and one
// that cannot be read, or is not what was written, is removed and computed again.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/result.h"
#include "engine/page_file.h"
#include "engine/piece_store.h"
#include "engine/running_rate.h"

namespace kivi {

struct KvDiskOptions {
  std::string folder;
  int64_t bytes_max = 0;  // of all files; the least recently used ones are removed
  std::string key_file;   // 64 hexadecimal digits: pages are encrypted; "": they are not
  bool read_only = false;
};

class KvDisk : public PieceStore {
 public:
  // Opens the folder, or makes it, and lists its files. Errors name kv_disk or kv_disk_key_file:
  // invalid (a folder or a key that others may read, a key that is none), unavailable (another
  // server writes to it), not_found (read_only, and nothing has been written yet), internal.
  static Result<std::unique_ptr<KvDisk>> open(const KvDiskOptions& options);
  ~KvDisk() override;  // waits for the jobs under way

  // The secret of the folder, or of the key: names begin with it.
  const std::string& secret() const { return secret_; }
  // Where host pages are, and what their bytes depend on. Once, before the first job.
  void use_pages(std::byte* pages, size_t page_bytes, const BlockName& fingerprint);

  bool writes() const override;
  bool contains(const PieceKey& key) const override { return files_.contains(key); }
  uint64_t write(const PieceKey& key, const std::vector<int32_t>& pages) override;
  uint64_t read(const PieceKey& key, const std::vector<int32_t>& pages) override;
  void poll(std::vector<Done>& done) override;
  void erase(const PieceKey& key) override;
  PieceStoreStats stats() const override;
  double pages_read_per_second() const override;

  // Removes every file of the cache from a folder, its secret included, and nothing else. Returns
  // their number. Error unavailable: a server writes to it.
  static Result<int> clear(const std::string& folder);

 private:
  enum class Task : uint8_t { read, write, remove };
  struct Job {
    uint64_t number = 0;  // 0: nobody asks for its end
    Task task = Task::read;
    PieceKey key;
    std::vector<std::byte*> pages;
  };
  struct Ended {
    uint64_t number;
    Task task;
    PieceKey key;
    int64_t bytes;
    bool ok;
    int pages;
    double seconds;
  };
  struct File {
    int64_t bytes = 0;
    std::list<PieceKey>::iterator age;
  };
  struct Listed {
    PieceKey key;
    int64_t bytes = 0;
    int64_t used_ns = 0;  // time of last use
  };
  struct Lock;

  KvDisk(KvDiskOptions options, std::unique_ptr<Lock> lock, std::string secret);
  std::string path_of(const PieceKey& key) const;
  std::vector<Listed> list_files() const;
  void add_file(const PieceKey& key, int64_t bytes);
  void forget_file(const PieceKey& key);
  void make_room(int64_t bytes);
  uint64_t enqueue(Task task, const PieceKey& key, const std::vector<int32_t>& pages);
  void run(const std::stop_token& stop, bool lists);
  Ended run(const Job& job) const;
  void note(const Ended& ended);

  const KvDiskOptions options_;
  const std::unique_ptr<Lock> lock_;
  const std::string secret_;
  const PageFileKeys keys_;
  std::byte* pages_ = nullptr;
  size_t page_bytes_ = 0;
  BlockName fingerprint_{};

  // The engine thread's.
  std::unordered_map<PieceKey, File, PieceKeyHash> files_;
  std::list<PieceKey> by_age_;                                // the first is the oldest
  std::unordered_map<PieceKey, bool, PieceKeyHash> writing_;  // true: to be erased when it is done
  int64_t bytes_ = 0;                                         // of files_
  int64_t bytes_writing_ = 0;
  uint64_t next_job_ = 1;
  std::chrono::steady_clock::time_point paused_until_;  // after a failure nothing is written
  PieceStoreStats counted_;
  RunningRate reads_;  // pages, of one thread

  std::mutex mutex_;  // guards the next three
  std::condition_variable_any arrived_;
  std::deque<Job> jobs_;
  std::vector<Ended> ended_;
  std::vector<Listed> listed_;  // anew, in a folder that is only read
  std::vector<std::jthread> threads_;
};

}  // namespace kivi
