// SPDX-License-Identifier: Apache-2.0
// Opens a regular file for reading, and refuses everything else that a path may name.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"

namespace kivi {

// An open descriptor, closed with the object.
class RegularFile {
 public:
  // Never waits: a FIFO without a writer, a device, a socket and a folder are refused as `invalid`.
  // A path that cannot be opened is `not_found`. Both errors name the path.
  static Result<RegularFile> open(const std::string& path);
  ~RegularFile();
  RegularFile(RegularFile&& other) noexcept;
  RegularFile& operator=(RegularFile&& other) noexcept;

  int descriptor() const { return descriptor_; }
  int64_t bytes() const { return bytes_; }  // when the file was opened

  // Reads `bytes()` bytes from the beginning. Error: the file shrank or cannot be read.
  Result<std::string> read() const;

 private:
  RegularFile() = default;
  std::string path_;
  int descriptor_ = -1;
  int64_t bytes_ = 0;
};

}  // namespace kivi
