// SPDX-License-Identifier: Apache-2.0
#include "base/regular_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace kivi {

Result<RegularFile> RegularFile::open(const std::string& path) {
  RegularFile file;
  file.path_ = path;
  // O_NONBLOCK: to open a FIFO would otherwise wait for a writer.
  file.descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  struct stat status = {};
  if (file.descriptor_ < 0 || ::fstat(file.descriptor_, &status) != 0)
    return Error{ErrorCode::not_found,
                 fmt::format("{}: cannot be opened: {}", path, std::strerror(errno))};
  if (!S_ISREG(status.st_mode))
    return Error{ErrorCode::invalid, fmt::format("{}: is a {}, must be a regular file", path,
                                                 S_ISDIR(status.st_mode)    ? "folder"
                                                 : S_ISFIFO(status.st_mode) ? "FIFO"
                                                                            : "device")};
  file.bytes_ = int64_t(status.st_size);
  return file;
}

Result<std::string> RegularFile::read() const {
  std::string text(size_t(bytes_), '\0');
  for (size_t done = 0; done < text.size();) {
    const ssize_t got = ::pread(descriptor_, text.data() + done, text.size() - done, off_t(done));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0)
      return Error{ErrorCode::invalid,
                   fmt::format("{}: cannot be read: {}", path_,
                               got == 0 ? "it became shorter" : std::strerror(errno))};
    done += size_t(got);
  }
  return text;
}

RegularFile::~RegularFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

RegularFile::RegularFile(RegularFile&& other) noexcept
    : path_(std::move(other.path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      bytes_(std::exchange(other.bytes_, 0)) {}

RegularFile& RegularFile::operator=(RegularFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(descriptor_, other.descriptor_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

}  // namespace kivi
