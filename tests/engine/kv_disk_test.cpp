// SPDX-License-Identifier: Apache-2.0
// Files of the prefix cache: they come back as they were written, or not at all.
#include "engine/kv_disk.h"

#include <fmt/format.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <random>
#include <set>
#include <string>
#include <thread>

using namespace kivi;
namespace fs = std::filesystem;

namespace {

constexpr size_t kPageBytes = 512;

class Folder {
 public:
  Folder() {
    std::string name = (fs::temp_directory_path() / "kivi_kv_disk_XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path = name;
  }
  ~Folder() { fs::remove_all(path); }
  std::set<std::string> files() const {
    std::set<std::string> names;
    for (const auto& entry : fs::directory_iterator(path))
      names.insert(entry.path().filename().string());
    return names;
  }
  std::string path;
};

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write_file(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

BlockName name_of(int number) {
  const std::string text = std::to_string(number);
  return sha256(std::array{std::string_view(text)});
}

PieceKey key_of(int number, PieceKind kind = PieceKind::block) { return {name_of(number), kind}; }

// Host pages with content that their number decides.
struct Pages {
  explicit Pages(int count) : bytes(size_t(count) * kPageBytes) {
    for (int page = 0; page < count; ++page) fill(page, page);
  }
  void fill(int page, int number) {
    std::mt19937 random{unsigned(number)};
    for (size_t i = 0; i < kPageBytes; ++i)
      bytes[size_t(page) * kPageBytes + i] = std::byte(random());
  }
  std::string page(int number) const {
    return {reinterpret_cast<const char*>(bytes.data()) + size_t(number) * kPageBytes, kPageBytes};
  }
  std::vector<std::byte> bytes;
};

// Ends every job; true if all went well.
bool finish(KvDisk& disk, size_t jobs) {
  bool ok = true;
  std::vector<PieceStore::Done> done;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (done.size() < jobs) {
    disk.poll(done);
    REQUIRE(std::chrono::steady_clock::now() < deadline);
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  for (const auto& d : done) ok = ok && d.ok;
  return ok;
}

KvDiskOptions options_of(const Folder& folder, int64_t bytes = 1 << 20) {
  return {.folder = folder.path, .bytes_max = bytes};
}

std::unique_ptr<KvDisk> open_disk(const KvDiskOptions& options, Pages& pages) {
  auto disk = KvDisk::open(options);
  if (!disk.ok()) FAIL(disk.error().message);
  (*disk)->use_pages(pages.bytes.data(), kPageBytes, name_of(-1));
  return std::move(disk).value();
}

}  // namespace

TEST_CASE("pieces come back from disk after the store was closed, encrypted or not") {
  const bool encrypts = GENERATE(false, true);
  const Folder folder, keys;
  KvDiskOptions options = options_of(folder);
  if (encrypts) {
    options.key_file = keys.path + "/key";
    write_file(options.key_file, std::string(63, 'a') + "B\n");
    ::chmod(options.key_file.c_str(), 0600);
  }
  Pages pages(8);
  {
    const auto disk = open_disk(options, pages);
    disk->write(key_of(1), {0, 1});
    disk->write(key_of(1, PieceKind::checkpoint), {2, 3, 4});
    CHECK_FALSE(disk->contains(key_of(1)));
    REQUIRE(finish(*disk, 2));
    CHECK(disk->contains(key_of(1)));
    CHECK(disk->stats().bytes == page_file_bytes(2, kPageBytes) + page_file_bytes(3, kPageBytes));
  }
  for (const auto& entry : fs::directory_iterator(folder.path)) {
    struct stat info = {};
    REQUIRE(::stat(entry.path().c_str(), &info) == 0);
    CHECK((info.st_mode & 077) == 0);
    const bool plain = read_file(entry.path().string()).find(pages.page(0)) != std::string::npos;
    CHECK_FALSE((encrypts && plain));
  }
  Pages other(8);
  std::fill(other.bytes.begin(), other.bytes.end(), std::byte{7});
  const auto disk = open_disk(options, other);
  REQUIRE(disk->contains(key_of(1, PieceKind::checkpoint)));
  disk->read(key_of(1, PieceKind::checkpoint), {7, 5, 6});
  disk->read(key_of(1), {0, 1});
  REQUIRE(finish(*disk, 2));
  CHECK(other.page(7) == pages.page(2));
  CHECK(other.page(5) == pages.page(3));
  CHECK(other.page(6) == pages.page(4));
  CHECK(other.page(1) == pages.page(1));
}

TEST_CASE("no mutation of a file is read, in 10,000") {
  const bool encrypts = GENERATE(false, true);
  const Folder folder;
  const PageFileKeys keys = PageFileKeys::of("secret", encrypts);
  Pages pages(4);
  std::vector<std::byte*> at;
  for (int i = 0; i < 4; ++i) at.push_back(pages.bytes.data() + size_t(i) * kPageBytes);
  const auto content = [&](int number, std::span<std::byte* const> of) {
    return PageFileContent{key_of(number), name_of(-1), kPageBytes, of};
  };
  const std::string path = folder.path + "/a", other_path = folder.path + "/b";
  REQUIRE(write_page_file(path, content(1, std::span(at).first(2)), keys).ok());
  REQUIRE(write_page_file(other_path, content(2, std::span(at).subspan(2)), keys).ok());
  const std::string whole = read_file(path), other = read_file(other_path);
  std::mt19937 random(1);
  Pages read(2);
  std::vector<std::byte*> to{read.bytes.data(), read.bytes.data() + kPageBytes};
  int mutations = 0;
  while (mutations < 5000) {
    std::string mutated = whole;
    const size_t i = random() % whole.size(), n = 1 + random() % 64;
    switch (random() % 8) {
      case 0:
        mutated[i] = char(uint8_t(mutated[i]) ^ (1u << random() % 8));
        break;
      case 1:
        mutated[i] = char(random());
        break;
      case 2:
        mutated.resize(i);
        break;
      case 3:
        mutated += std::string(n, char(random()));
        break;
      case 4:
        mutated.replace(i, std::min(n, whole.size() - i), std::string(n, '\0'));
        break;
      case 5:
        mutated.erase(i, n);
        break;
      case 6:
        mutated = other.substr(0, i) + mutated.substr(i);
        break;  // of another piece
      case 7:
        std::swap(mutated[i], mutated[random() % whole.size()]);
        break;
    }
    if (mutated == whole) continue;
    ++mutations;
    write_file(path, mutated);
    const Status status = read_page_file(path, content(1, to), keys);
    if (status.ok()) FAIL("a mutation was read: number " << mutations);
  }
  write_file(path, other);  // under a name that is not its own
  CHECK_FALSE(read_page_file(path, content(1, to), keys).ok());
  write_file(path, whole);
  CHECK(read_page_file(path, content(1, to), keys).ok());
  CHECK(read.page(1) == pages.page(1));
  // Another secret, model, kind or size.
  CHECK_FALSE(read_page_file(path, content(1, to), PageFileKeys::of("other", encrypts)).ok());
  CHECK_FALSE(read_page_file(path, content(1, to), PageFileKeys::of("secret", !encrypts)).ok());
  PageFileContent wrong = content(1, to);
  wrong.fingerprint = name_of(-2);
  CHECK_FALSE(read_page_file(path, wrong, keys).ok());
  wrong = content(1, to);
  wrong.key.kind = PieceKind::checkpoint;
  CHECK_FALSE(read_page_file(path, wrong, keys).ok());
  CHECK_FALSE(read_page_file(path, content(1, std::span(to).first(1)), keys).ok());
}

TEST_CASE("a file that is not what was written is removed, and its piece is gone") {
  const Folder folder;
  Pages pages(4);
  const auto disk = open_disk(options_of(folder), pages);
  disk->write(key_of(1), {0, 1});
  REQUIRE(finish(*disk, 1));
  for (const std::string& name : folder.files())
    if (name.ends_with(".block")) fs::resize_file(folder.path + "/" + name, 700);
  disk->read(key_of(1), {2, 3});
  CHECK_FALSE(finish(*disk, 1));
  CHECK_FALSE(disk->contains(key_of(1)));
  CHECK(disk->stats().read_failures == 1);
  CHECK(disk->stats().bytes == 0);
  disk->write(key_of(2), {0});  // after the removal, with two threads at the latest
  disk->write(key_of(3), {0});
  REQUIRE(finish(*disk, 2));
  CHECK(folder.files().size() == 2 + 2);  // and the lock and the secret
}

TEST_CASE("the oldest files go when the room is used up, and reading makes a file younger") {
  const Folder folder;
  Pages pages(4);
  const int64_t one = page_file_bytes(1, kPageBytes);
  const auto disk = open_disk(options_of(folder, 3 * one), pages);
  for (int i = 0; i < 3; ++i) {
    disk->write(key_of(i), {0});
    REQUIRE(finish(*disk, 1));
  }
  disk->read(key_of(0), {1});
  REQUIRE(finish(*disk, 1));
  disk->write(key_of(3), {0});
  REQUIRE(finish(*disk, 1));
  CHECK(disk->contains(key_of(0)));
  CHECK_FALSE(disk->contains(key_of(1)));
  CHECK(disk->contains(key_of(3)));
  CHECK(disk->stats().bytes == 3 * one);
  // A piece that is larger than the room leaves nothing behind.
  disk->write(key_of(4), {0, 1, 2, 3});
  finish(*disk, 1);
  CHECK_FALSE(disk->contains(key_of(4)));
}

TEST_CASE("what is erased while it is being written does not come back") {
  const Folder folder;
  Pages pages(1);
  const auto disk = open_disk(options_of(folder), pages);
  disk->write(key_of(1), {0});
  disk->erase(key_of(1));
  REQUIRE(finish(*disk, 1));
  CHECK_FALSE(disk->contains(key_of(1)));
}

TEST_CASE("a disk that is full costs the cache: nothing is left behind, and writing pauses") {
  const Folder folder;
  Pages pages(4);
  const auto disk = open_disk(options_of(folder), pages);
  rlimit before = {};
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &before) == 0);
  const rlimit small = {600, before.rlim_max};
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &small) == 0);
  disk->write(key_of(1), {0, 1});
  const bool ok = finish(*disk, 1);
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &before) == 0);
  CHECK_FALSE(ok);
  CHECK_FALSE(disk->contains(key_of(1)));
  CHECK_FALSE(disk->writes());
  CHECK(disk->stats().write_failures == 1);
  CHECK(folder.files() == std::set<std::string>{"lock", "secret"});
}

TEST_CASE("one server writes to a folder, others read what it has written") {
  const Folder folder;
  Pages pages(4), read(4);
  KvDiskOptions read_only = options_of(folder);
  read_only.read_only = true;
  CHECK(KvDisk::open(read_only).error().code == ErrorCode::not_found);
  const auto writer = open_disk(options_of(folder), pages);
  const Result<std::unique_ptr<KvDisk>> second = KvDisk::open(options_of(folder));
  REQUIRE_FALSE(second.ok());
  CHECK(second.error().code == ErrorCode::unavailable);
  CHECK(second.error().field == "kv_disk");
  writer->write(key_of(1), {0});
  REQUIRE(finish(*writer, 1));
  const auto reader = open_disk(read_only, read);
  CHECK_FALSE(reader->writes());
  REQUIRE(reader->contains(key_of(1)));
  reader->read(key_of(1), {3});
  REQUIRE(finish(*reader, 1));
  CHECK(read.page(3) == pages.page(0));
  // It looks again from time to time.
  writer->write(key_of(2), {1});
  REQUIRE(finish(*writer, 1));
  std::vector<PieceStore::Done> none;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (!reader->contains(key_of(2)) && std::chrono::steady_clock::now() < deadline) {
    reader->poll(none);
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  CHECK(reader->contains(key_of(2)));
}

TEST_CASE("folders and keys that others may read are refused") {
  const Folder folder;
  ::chmod(folder.path.c_str(), 0750);
  const auto open = KvDisk::open(options_of(folder));
  REQUIRE_FALSE(open.ok());
  CHECK(open.error().field == "kv_disk");
  CHECK(open.error().message.find("chmod 700") != std::string::npos);
  ::chmod(folder.path.c_str(), 0700);
  KvDiskOptions options = options_of(folder);
  options.key_file = folder.path + "/key";
  const auto refused = [&] {
    const auto disk = KvDisk::open(options);
    REQUIRE_FALSE(disk.ok());
    CHECK(disk.error().field == "kv_disk_key_file");
    return disk.error().message;
  };
  CHECK(refused().find("cannot be read") != std::string::npos);
  write_file(options.key_file, std::string(64, '0'));
  ::chmod(options.key_file.c_str(), 0644);
  CHECK(refused().find("chmod 600") != std::string::npos);
  ::chmod(options.key_file.c_str(), 0600);
  CHECK(KvDisk::open(options).ok());
  write_file(options.key_file, std::string(63, '0') + "g");
  CHECK(refused().find("64 hexadecimal digits") != std::string::npos);
  KvDiskOptions missing = options_of(folder);
  missing.folder = folder.path + "/a/b";
  CHECK(KvDisk::open(missing).error().field == "kv_disk");
}

TEST_CASE("clearing a folder removes the cache's files and no others, while no server writes") {
  const Folder folder;
  CHECK_FALSE(KvDisk::clear(folder.path).ok());  // not a folder of the cache
  Pages pages(2);
  {
    const auto disk = open_disk(options_of(folder), pages);
    disk->write(key_of(1), {0});
    disk->write(key_of(2, PieceKind::checkpoint), {0, 1});
    REQUIRE(finish(*disk, 2));
    CHECK(KvDisk::clear(folder.path).error().code == ErrorCode::unavailable);
  }
  const std::string mine = std::string(64, 'a') + ".blocks";
  write_file(folder.path + "/" + mine, "mine");
  write_file(folder.path + "/" + std::string(64, 'a') + ".block.tmp", "left by a killed server");
  const Result<int> removed = KvDisk::clear(folder.path);
  REQUIRE(removed.ok());
  CHECK(*removed == 4);
  CHECK(folder.files() == std::set<std::string>{"lock", mine});
}
