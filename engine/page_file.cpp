// SPDX-License-Identifier: Apache-2.0
#include "engine/page_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <vector>

#include "base/verify.h"

namespace kivi {
namespace {

constexpr size_t kTagBytes = 16;
constexpr size_t kChunk = size_t(1) << 20;  // of pages that are encrypted at a time

struct Header {
  char magic[8] = {'k', 'i', 'v', 'i', '-', 'k', 'v', '\n'};
  uint32_t version = 1;
  uint32_t encrypted = 0;
  uint32_t kind = 0;
  uint32_t pages = 0;
  uint64_t page_bytes = 0;
  BlockName name{};
  BlockName fingerprint{};
  BlockName salt{};  // random
};
static_assert(sizeof(Header) == 128);

Header header_of(const PageFileContent& content, const PageFileKeys& keys) {
  Header header;
  header.encrypted = keys.encrypts ? 1 : 0;
  header.kind = uint32_t(content.key.kind);
  header.pages = uint32_t(content.pages.size());
  header.page_bytes = content.page_bytes;
  header.name = content.key.name;
  header.fingerprint = content.fingerprint;
  return header;
}

// A descriptor that is closed at the end of its scope.
class File {
 public:
  explicit File(int fd) : fd_(fd) {}
  ~File() {
    if (fd_ >= 0) ::close(fd_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  bool open() const { return fd_ >= 0; }
  int fd() const { return fd_; }
  // Closes the file now: false if the system reports a late error.
  bool close() {
    const int fd = fd_;
    fd_ = -1;
    return ::close(fd) == 0;
  }
  bool write(const void* data, size_t bytes) const {
    const char* at = static_cast<const char*>(data);
    while (bytes > 0) {
      const ssize_t n = ::write(fd_, at, bytes);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return false;
      at += n;
      bytes -= size_t(n);
    }
    return true;
  }
  bool read(void* data, size_t bytes) const {
    char* at = static_cast<char*>(data);
    while (bytes > 0) {
      const ssize_t n = ::read(fd_, at, bytes);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return false;
      at += n;
      bytes -= size_t(n);
    }
    return true;
  }

 private:
  int fd_;
};

// AES-256-GCM over a header and pages.
class Seal {
 public:
  Seal(const PageFileKeys& keys, const Header& header, bool decrypts) : decrypts_(decrypts) {
    // Every file has a key of its own, so one initialization vector serves all.
    const BlockName key = sha256(std::array{name_view(keys.pages), name_view(header.salt)});
    constexpr unsigned char kZero[12] = {};
    const auto init = decrypts ? EVP_DecryptInit_ex : EVP_EncryptInit_ex;
    const int begun = init(context_.get(), EVP_aes_256_gcm(), nullptr, key.data(), kZero);
    KIVI_VERIFY(begun == 1);
    encrypts_ = header.encrypted != 0;
    update(nullptr, &header, sizeof header);
  }
  // Takes in the next bytes of pages. `out` is where they go en- or decrypted; it may be `in`.
  void pages(std::byte* out, const std::byte* in, size_t bytes) {
    for (size_t i = 0; i < bytes; i += kChunk)
      update(encrypts_ ? out + i : nullptr, in + i, std::min(kChunk, bytes - i));
  }
  std::array<unsigned char, kTagBytes> tag() {
    std::array<unsigned char, kTagBytes> tag;
    int none = 0;
    const int ended = EVP_EncryptFinal_ex(context_.get(), tag.data(), &none);
    KIVI_VERIFY(ended == 1);
    const int got =
        EVP_CIPHER_CTX_ctrl(context_.get(), EVP_CTRL_GCM_GET_TAG, int(kTagBytes), tag.data());
    KIVI_VERIFY(got == 1);
    return tag;
  }
  bool has_tag(std::array<unsigned char, kTagBytes> tag) {
    unsigned char unused[kTagBytes];
    int none = 0;
    const int set =
        EVP_CIPHER_CTX_ctrl(context_.get(), EVP_CTRL_GCM_SET_TAG, int(kTagBytes), tag.data());
    KIVI_VERIFY(set == 1);
    return EVP_DecryptFinal_ex(context_.get(), unused, &none) == 1;
  }

 private:
  // Without `out`, the bytes are only authenticated.
  void update(std::byte* out, const void* in, size_t bytes) {
    int n = 0;
    const auto next = decrypts_ ? EVP_DecryptUpdate : EVP_EncryptUpdate;
    const int updated = next(context_.get(), reinterpret_cast<unsigned char*>(out), &n,
                             static_cast<const unsigned char*>(in), int(bytes));
    KIVI_VERIFY(updated == 1);
  }

  std::unique_ptr<EVP_CIPHER_CTX, decltype(&EVP_CIPHER_CTX_free)> context_{EVP_CIPHER_CTX_new(),
                                                                           EVP_CIPHER_CTX_free};
  const bool decrypts_;
  bool encrypts_ = false;
};

Error failed(const std::string& path, const char* what) {
  return Error{ErrorCode::internal, fmt::format("{}: {}: {}", path, what, std::strerror(errno))};
}

Status write_all(const File& file, const std::string& path, const PageFileContent& content,
                 const PageFileKeys& keys) {
  Header header = header_of(content, keys);
  KIVI_VERIFY(RAND_bytes(header.salt.data(), int(header.salt.size())) == 1);
  Seal seal(keys, header, /*decrypts=*/false);
  if (!file.write(&header, sizeof header)) return failed(path, "cannot write");
  std::vector<std::byte> encrypted(keys.encrypts ? kChunk : 0);
  for (const std::byte* page : content.pages)
    for (size_t i = 0; i < content.page_bytes; i += kChunk) {
      const size_t bytes = std::min(kChunk, content.page_bytes - i);
      seal.pages(encrypted.data(), page + i, bytes);
      if (!file.write(keys.encrypts ? encrypted.data() : page + i, bytes))
        return failed(path, "cannot write");
    }
  const auto tag = seal.tag();
  return file.write(tag.data(), tag.size()) ? ok_status() : failed(path, "cannot write");
}

}  // namespace

PageFileKeys PageFileKeys::of(std::string_view secret, bool encrypts) {
  return {sha256(std::array{std::string_view("kivi page files"), secret}), encrypts};
}

int64_t page_file_bytes(size_t pages, size_t page_bytes) {
  return int64_t(sizeof(Header) + pages * page_bytes + kTagBytes);
}

Status write_page_file(const std::string& path, const PageFileContent& content,
                       const PageFileKeys& keys) {
  const std::string temporary = path + ".tmp";
  ::unlink(temporary.c_str());  // of a server that was killed
  File file(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!file.open()) return failed(temporary, "cannot create");
  Status status = write_all(file, temporary, content, keys);
  if (status.ok() && !file.close()) status = failed(temporary, "cannot write");
  if (status.ok() && ::rename(temporary.c_str(), path.c_str()) != 0)
    status = failed(temporary, "cannot rename");
  if (!status.ok()) ::unlink(temporary.c_str());
  return status;
}

Status read_page_file(const std::string& path, const PageFileContent& content,
                      const PageFileKeys& keys) {
  const auto wrong = [&](const char* what) {
    return Error{ErrorCode::invalid, fmt::format("{}: {}", path, what)};
  };
  const File file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!file.open()) return failed(path, "cannot open");
  struct stat info = {};
  if (::fstat(file.fd(), &info) != 0 || !S_ISREG(info.st_mode)) return wrong("not a regular file");
  if (info.st_size != page_file_bytes(content.pages.size(), content.page_bytes))
    return wrong("does not have the length of a page file of this cache");
  Header header;
  if (!file.read(&header, sizeof header)) return failed(path, "cannot read");
  Header expected = header_of(content, keys);
  expected.salt = header.salt;
  if (std::memcmp(&header, &expected, sizeof header) != 0)
    return wrong("its header is not that of this cache and block");
  Seal seal(keys, header, /*decrypts=*/true);
  for (std::byte* page : content.pages) {
    if (!file.read(page, content.page_bytes)) return failed(path, "cannot read");
    seal.pages(page, page, content.page_bytes);
  }
  std::array<unsigned char, kTagBytes> tag;
  if (!file.read(tag.data(), tag.size())) return failed(path, "cannot read");
  return seal.has_tag(tag) ? ok_status() : wrong("its content is not what was written");
}

}  // namespace kivi
