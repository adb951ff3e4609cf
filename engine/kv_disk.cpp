// SPDX-License-Identifier: Apache-2.0
#include "engine/kv_disk.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>

#include "base/log.h"
#include "base/regular_file.h"
#include "base/verify.h"

namespace kivi {
namespace {

namespace fs = std::filesystem;

constexpr int kThreads = 2;
constexpr auto kPause = std::chrono::seconds(10);
constexpr auto kListEvery = std::chrono::seconds(5);
constexpr size_t kSecretBytes = 32;
constexpr const char* kSecretFile = "secret";
constexpr const char* kLockFile = "lock";
constexpr const char* kSuffixes[] = {".block", ".checkpoint"};  // by PieceKind
constexpr const char* kTemporary = ".tmp";

Error wrong(const char* field, ErrorCode code, std::string message) {
  return Error{code, std::move(message), field};
}

std::string system_error() { return std::strerror(errno); }

int digit_of(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

// The bytes that `digits` (lower case) stand for; none if they are not 32.
std::optional<BlockName> bytes_of(std::string_view digits) {
  BlockName name;
  if (digits.size() != 2 * name.size()) return std::nullopt;
  for (size_t i = 0; i < name.size(); ++i) {
    const int high = digit_of(digits[2 * i]), low = digit_of(digits[2 * i + 1]);
    if (high < 0 || low < 0) return std::nullopt;
    name[i] = uint8_t(high * 16 + low);
  }
  return name;
}

std::optional<PieceKey> key_of(std::string_view file_name) {
  for (const PieceKind kind : {PieceKind::block, PieceKind::checkpoint}) {
    const std::string_view suffix = kSuffixes[int(kind)];
    if (!file_name.ends_with(suffix)) continue;
    const auto name = bytes_of(file_name.substr(0, file_name.size() - suffix.size()));
    if (name) return PieceKey{*name, kind};
  }
  return std::nullopt;
}

std::string file_name_of(const PieceKey& key) {
  std::string text;
  for (const uint8_t byte : key.name) text += fmt::format("{:02x}", byte);
  return text + kSuffixes[int(key.kind)];
}

bool is_leftover(std::string_view file_name) {
  const std::string_view suffix = kTemporary;
  return file_name.ends_with(suffix) &&
         key_of(file_name.substr(0, file_name.size() - suffix.size())).has_value();
}

// Nobody but this user may read what users wrote.
Status check_owner_only(const char* field, const std::string& path, const char* mode) {
  struct stat info = {};
  if (::stat(path.c_str(), &info) != 0)
    return wrong(field, ErrorCode::not_found,
                 fmt::format("{} is {}, which cannot be read: {}", field, path, system_error()));
  if (info.st_uid != ::geteuid())
    return wrong(field, ErrorCode::invalid,
                 fmt::format("{} is {}, which belongs to user {}, must belong to the user of this "
                             "process, {}",
                             field, path, info.st_uid, ::geteuid()));
  if ((info.st_mode & 077) != 0)
    return wrong(field, ErrorCode::invalid,
                 fmt::format("{} is {} with mode {:o}, must not be open to others: chmod {} it",
                             field, path, info.st_mode & 0777, mode));
  return ok_status();
}

Status make_folder(const std::string& folder, bool read_only) {
  if (!read_only && ::mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST)
    return wrong("kv_disk", ErrorCode::invalid,
                 fmt::format("kv_disk is {}, which cannot be made: {}", folder, system_error()));
  std::error_code ignored;
  if (!fs::is_directory(folder, ignored))
    return wrong("kv_disk", ErrorCode::not_found,
                 fmt::format("kv_disk is {}, must be a folder", folder));
  return check_owner_only("kv_disk", folder, "700");
}

std::optional<std::string> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return std::nullopt;
  return std::string(std::istreambuf_iterator<char>(file), {});
}

bool sync_and_close(int fd) {
  const bool synced = ::fsync(fd) == 0;
  return ::close(fd) == 0 && synced;
}

// The secret is the one file that must survive a loss of power: without it, no other is of use.
bool write_secret(const std::string& folder, const std::string& secret) {
  const std::string path = folder + "/" + kSecretFile, temporary = path + kTemporary;
  const int fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (fd < 0) return false;
  const bool written = ::write(fd, secret.data(), secret.size()) == ssize_t(secret.size());
  if (!sync_and_close(fd) || !written) return false;
  if (::rename(temporary.c_str(), path.c_str()) != 0) return false;
  const int parent = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  return parent >= 0 && sync_and_close(parent);
}

Result<std::string> folder_secret(const std::string& folder, bool read_only) {
  const std::string path = folder + "/" + kSecretFile;
  if (auto secret = read_file(path)) {
    KIVI_RETURN_IF_ERROR(check_owner_only("kv_disk", path, "600"));
    if (secret->size() == kSecretBytes) return *secret;
    return wrong("kv_disk", ErrorCode::invalid,
                 fmt::format("{} has {} bytes, must have {}: empty the folder with kivi "
                             "clear-kv-disk",
                             path, secret->size(), kSecretBytes));
  }
  if (read_only)
    return wrong("kv_disk", ErrorCode::not_found,
                 fmt::format("kv_disk is {}, which holds no secret yet: start the server that "
                             "writes to it first",
                             folder));
  const std::string secret = random_secret();
  if (!write_secret(folder, secret))
    return wrong("kv_disk", ErrorCode::internal,
                 fmt::format("{} cannot be written: {}", path, system_error()));
  return secret;
}

Result<std::string> key_secret(const std::string& path) {
  KIVI_RETURN_IF_ERROR(check_owner_only("kv_disk_key_file", path, "600"));
  const Result<RegularFile> file = RegularFile::open(path);  // a FIFO would be waited for
  Result<std::string> read = file.ok() ? file->read() : Result<std::string>(file.error());
  if (!read.ok())
    return wrong("kv_disk_key_file", ErrorCode::invalid,
                 fmt::format("kv_disk_key_file is {}", read.error().message));
  std::string digits = std::move(*read);
  while (!digits.empty() && std::isspace(uint8_t(digits.back()))) digits.pop_back();
  for (char& c : digits) c = char(std::tolower(uint8_t(c)));
  const auto key = bytes_of(digits);
  if (!key)
    return wrong(
        "kv_disk_key_file", ErrorCode::invalid,
        fmt::format("kv_disk_key_file is {}, must hold 64 hexadecimal digits (openssl rand "
                    "-hex 32)",
                    path));
  return std::string(reinterpret_cast<const char*>(key->data()), key->size());
}

int64_t nanoseconds(const timespec& t) { return int64_t(t.tv_sec) * 1'000'000'000 + t.tv_nsec; }

}  // namespace

// The lock of the server that writes. It ends with the process, however that ends.
struct KvDisk::Lock {
  int fd = -1;
  ~Lock() {
    if (fd >= 0) ::close(fd);
  }
  static Result<std::unique_ptr<Lock>> take(const std::string& folder) {
    auto lock = std::make_unique<Lock>();
    const std::string path = folder + "/" + kLockFile;
    lock->fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (lock->fd < 0)
      return wrong("kv_disk", ErrorCode::invalid,
                   fmt::format("{} cannot be written: {}", path, system_error()));
    if (::flock(lock->fd, LOCK_EX | LOCK_NB) != 0)
      return wrong("kv_disk", ErrorCode::unavailable,
                   fmt::format("kv_disk is {}, to which another server writes: this one can only "
                               "read from it (--kv-disk-read-only)",
                               folder));
    return lock;
  }
};

Result<std::unique_ptr<KvDisk>> KvDisk::open(const KvDiskOptions& options) {
  KIVI_RETURN_IF_ERROR(make_folder(options.folder, options.read_only));
  std::unique_ptr<Lock> lock;
  if (!options.read_only) {
    KIVI_ASSIGN_OR_RETURN(lock, Lock::take(options.folder));
  }
  std::string secret;
  if (options.key_file.empty()) {
    KIVI_ASSIGN_OR_RETURN(secret, folder_secret(options.folder, options.read_only));
  } else {
    KIVI_ASSIGN_OR_RETURN(secret, key_secret(options.key_file));
  }
  // A limit on the size of files is an error of write(), like a full disk.
  std::signal(SIGXFSZ, SIG_IGN);
  return std::unique_ptr<KvDisk>(new KvDisk(options, std::move(lock), std::move(secret)));
}

KvDisk::KvDisk(KvDiskOptions options, std::unique_ptr<Lock> lock, std::string secret)
    : options_(std::move(options)),
      lock_(std::move(lock)),
      secret_(std::move(secret)),
      keys_(PageFileKeys::of(secret_, !options_.key_file.empty())) {
  for (const Listed& file : list_files()) add_file(file.key, file.bytes);
  if (!options_.read_only) make_room(0);
  for (int i = 0; i < kThreads; ++i)
    threads_.emplace_back([this, i](const std::stop_token& stop) { run(stop, i == 0); });
}

KvDisk::~KvDisk() {
  for (std::jthread& thread : threads_) thread.request_stop();
  threads_.clear();
}

void KvDisk::use_pages(std::byte* pages, size_t page_bytes, const BlockName& fingerprint) {
  pages_ = pages;
  page_bytes_ = page_bytes;
  fingerprint_ = fingerprint;
}

std::string KvDisk::path_of(const PieceKey& key) const {
  return options_.folder + "/" + file_name_of(key);
}

// Oldest first. Removes what a killed server left half-written.
std::vector<KvDisk::Listed> KvDisk::list_files() const {
  std::vector<Listed> files;
  std::error_code error;
  for (fs::directory_iterator it(options_.folder, error), end; !error && it != end;
       it.increment(error)) {
    const std::string path = it->path().string(), name = it->path().filename().string();
    if (!options_.read_only && is_leftover(name)) ::unlink(path.c_str());
    const auto key = key_of(name);
    struct stat info = {};
    if (!key || ::lstat(path.c_str(), &info) != 0 || !S_ISREG(info.st_mode)) continue;
    files.push_back({*key, info.st_size, nanoseconds(info.st_mtim)});
  }
  std::ranges::sort(files, {}, &Listed::used_ns);
  return files;
}

// --- the index
// ------------------------------------------------------------------------------------

void KvDisk::add_file(const PieceKey& key, int64_t bytes) {
  forget_file(key);
  files_.emplace(key, File{bytes, by_age_.insert(by_age_.end(), key)});
  bytes_ += bytes;
}

void KvDisk::forget_file(const PieceKey& key) {
  const auto file = files_.find(key);
  if (file == files_.end()) return;
  bytes_ -= file->second.bytes;
  by_age_.erase(file->second.age);
  files_.erase(file);
}

void KvDisk::make_room(int64_t bytes) {
  while (!files_.empty() && bytes_ + bytes_writing_ + bytes > options_.bytes_max) {
    const PieceKey oldest = by_age_.front();  // erase() takes the entry of the list away
    erase(oldest);
  }
}

void KvDisk::erase(const PieceKey& key) {
  if (options_.read_only) return forget_file(key);
  if (const auto writing = writing_.find(key); writing != writing_.end()) writing->second = true;
  if (!files_.contains(key)) return;
  forget_file(key);
  enqueue(Task::remove, key, {});
}

bool KvDisk::writes() const {
  return !options_.read_only && std::chrono::steady_clock::now() >= paused_until_;
}

PieceStoreStats KvDisk::stats() const {
  PieceStoreStats stats = counted_;
  stats.bytes = bytes_;
  stats.bytes_limit = options_.bytes_max;
  stats.pieces = int64_t(files_.size());
  return stats;
}

// The threads read different pieces at the same time.
double KvDisk::pages_read_per_second() const { return kThreads * reads_.per_second(); }

// --- jobs
// -----------------------------------------------------------------------------------------

uint64_t KvDisk::enqueue(Task task, const PieceKey& key, const std::vector<int32_t>& pages) {
  Job job{.number = task == Task::remove ? 0 : next_job_++, .task = task, .key = key};
  for (const int32_t page : pages) job.pages.push_back(pages_ + size_t(page) * page_bytes_);
  const uint64_t number = job.number;
  const std::lock_guard lock(mutex_);
  jobs_.push_back(std::move(job));
  arrived_.notify_one();
  return number;
}

uint64_t KvDisk::write(const PieceKey& key, const std::vector<int32_t>& pages) {
  const int64_t bytes = page_file_bytes(pages.size(), page_bytes_);
  make_room(bytes);
  bytes_writing_ += bytes;
  writing_[key] = false;
  return enqueue(Task::write, key, pages);
}

uint64_t KvDisk::read(const PieceKey& key, const std::vector<int32_t>& pages) {
  if (const auto file = files_.find(key); file != files_.end())
    by_age_.splice(by_age_.end(), by_age_, file->second.age);
  return enqueue(Task::read, key, pages);
}

void KvDisk::poll(std::vector<Done>& done) {
  std::vector<Ended> ended;
  std::vector<Listed> listed;
  {
    const std::lock_guard lock(mutex_);
    ended.swap(ended_);
    listed.swap(listed_);
  }
  for (const Listed& file : listed)
    if (!files_.contains(file.key)) add_file(file.key, file.bytes);
  for (const Ended& e : ended) {
    note(e);
    done.push_back({e.number, e.ok});
  }
}

void KvDisk::note(const Ended& ended) {
  if (ended.task == Task::read) {
    counted_.bytes_read += ended.ok ? uint64_t(ended.bytes) : 0;
    if (ended.ok) reads_.add(ended.pages, ended.seconds);
    counted_.read_failures += ended.ok ? 0 : 1;
    if (!ended.ok) erase(ended.key);
    return;
  }
  const auto writing = writing_.find(ended.key);
  const bool erased = writing != writing_.end() && writing->second;
  if (writing != writing_.end()) writing_.erase(writing);
  bytes_writing_ -= ended.bytes;
  if (ended.ok) {
    counted_.bytes_written += uint64_t(ended.bytes);
    // A piece that is larger than all the room is written in vain.
    add_file(ended.key, ended.bytes);
    if (erased) erase(ended.key);
    make_room(0);
    return;
  }
  ++counted_.write_failures;
  paused_until_ = std::chrono::steady_clock::now() + kPause;
}

void KvDisk::run(const std::stop_token& stop, bool lists) {
  std::unique_lock lock(mutex_);
  auto list_at = std::chrono::steady_clock::now() + kListEvery;
  while (true) {
    const auto has_job = [this] { return !jobs_.empty(); };
    const bool found = lists && options_.read_only
                           ? arrived_.wait_until(lock, stop, list_at, has_job)
                           : arrived_.wait(lock, stop, has_job);
    if (stop.stop_requested() && !found) return;
    if (!found) {
      lock.unlock();
      std::vector<Listed> files = list_files();
      list_at = std::chrono::steady_clock::now() + kListEvery;
      lock.lock();
      listed_ = std::move(files);
      continue;
    }
    const Job job = std::move(jobs_.front());
    jobs_.pop_front();
    lock.unlock();
    const Ended ended = run(job);
    lock.lock();
    if (ended.number != 0) ended_.push_back(ended);
  }
}

KvDisk::Ended KvDisk::run(const Job& job) const {
  const std::string path = path_of(job.key);
  const auto begin = std::chrono::steady_clock::now();
  Ended ended{job.number, job.task,
              job.key,    page_file_bytes(job.pages.size(), page_bytes_),
              true,       int(job.pages.size()),
              0};
  if (job.task == Task::remove) {
    ::unlink(path.c_str());
    return ended;
  }
  const PageFileContent content{job.key, fingerprint_, page_bytes_, job.pages};
  const Status status = job.task == Task::write ? write_page_file(path, content, keys_)
                                                : read_page_file(path, content, keys_);
  ended.ok = status.ok();
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  ended.seconds = took.count();
  // The time of the last use outlives the server.
  if (ended.ok && job.task == Task::read && !options_.read_only)
    ::utimensat(AT_FDCWD, path.c_str(), nullptr, 0);
  if (!ended.ok) log_warning("prefix cache on disk: {}", status.error().message);
  return ended;
}

// --- the command
// ----------------------------------------------------------------------------------

Result<int> KvDisk::clear(const std::string& folder) {
  std::error_code error;
  if (!fs::is_directory(folder, error))
    return wrong("kv_disk", ErrorCode::not_found, fmt::format("{} is no folder", folder));
  if (!fs::exists(folder + "/" + kLockFile, error))
    return wrong(
        "kv_disk", ErrorCode::not_found,
        fmt::format("{} is no folder of --kv-disk: it has no file \"{}\"", folder, kLockFile));
  KIVI_ASSIGN_OR_RETURN(const std::unique_ptr<Lock> lock, Lock::take(folder));
  int removed = 0;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    const bool ours = key_of(name) || is_leftover(name) || name == kSecretFile ||
                      name == std::string(kSecretFile) + kTemporary;
    if (!ours) continue;
    if (::unlink(it->path().c_str()) != 0)
      return wrong("kv_disk", ErrorCode::internal,
                   fmt::format("{} cannot be removed: {}", it->path().string(), system_error()));
    ++removed;
  }
  if (error)
    return wrong("kv_disk", ErrorCode::internal,
                 fmt::format("{} cannot be read: {}", folder, error.message()));
  return removed;
}

}  // namespace kivi
