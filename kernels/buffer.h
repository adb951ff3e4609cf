// SPDX-License-Identifier: Apache-2.0
// Buffer owns one device allocation of a Backend. It can be moved but not copied, and it frees its
// memory on destruction. The Backend must outlive it.
#pragma once

#include <cstddef>
#include <utility>

namespace kivi {

class Backend;

class Buffer {
 public:
  Buffer() = default;
  Buffer(Backend* backend, std::byte* data, size_t bytes)
      : backend_(backend), data_(data), bytes_(bytes) {}
  ~Buffer();
  Buffer(Buffer&& other) noexcept
      : backend_(std::exchange(other.backend_, nullptr)),
        data_(std::exchange(other.data_, nullptr)),
        bytes_(std::exchange(other.bytes_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(backend_, other.backend_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }

  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  Backend* backend_ = nullptr;
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace kivi
