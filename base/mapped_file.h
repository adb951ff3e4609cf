// SPDX-License-Identifier: Apache-2.0
// MappedFile is a read-only mapping of a whole file.
#pragma once

#include <cstddef>
#include <string>

#include "base/result.h"

namespace kivi {

// If the file shrinks while it is mapped, a read kills the process (SIGBUS).
class MappedFile {
 public:
  // Errors are those of RegularFile::open, and `invalid` for an empty file.
  static Result<MappedFile> open(const std::string& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;

  const std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  MappedFile() = default;
  const std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace kivi
