// SPDX-License-Identifier: Apache-2.0
#include "base/mapped_file.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <utility>

#include "base/regular_file.h"

namespace kivi {

Result<MappedFile> MappedFile::open(const std::string& path) {
  KIVI_ASSIGN_OR_RETURN(const RegularFile opened, RegularFile::open(path));
  MappedFile file;
  void* data = MAP_FAILED;
  if (opened.bytes() > 0) {
    file.bytes_ = size_t(opened.bytes());
    data = ::mmap(nullptr, file.bytes_, PROT_READ, MAP_PRIVATE, opened.descriptor(), 0);
  }
  if (data == MAP_FAILED)
    return Error{ErrorCode::invalid,
                 fmt::format("{}: cannot be mapped ({} bytes)", path, opened.bytes())};
  file.data_ = static_cast<const std::byte*>(data);
  return file;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), bytes_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

}  // namespace kivi
