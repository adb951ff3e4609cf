// SPDX-License-Identifier: Apache-2.0
// Writes GGUF files for the tests, right and wrong ones, without the engine's help.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace kivi {

class GgufWriter {
 public:
  void u32(const std::string& key, uint32_t value) { pair(key, 4, raw(value)); }
  void f32(const std::string& key, float value) { pair(key, 6, raw(value)); }
  void boolean(const std::string& key, bool value) { pair(key, 7, raw(uint8_t(value))); }
  void string(const std::string& key, const std::string& value) { pair(key, 8, sized(value)); }
  void strings(const std::string& key, const std::vector<std::string>& values) {
    std::string bytes;
    for (const std::string& value : values) bytes += sized(value);
    array(key, 8, values.size(), bytes);
  }
  void i32s(const std::string& key, const std::vector<int32_t>& values) {
    array(key, 5, values.size(), many(values));
  }
  void f32s(const std::string& key, const std::vector<float>& values) {
    array(key, 6, values.size(), many(values));
  }
  void array(const std::string& key, uint32_t type, uint64_t count, const std::string& bytes) {
    pair(key, 9, raw(type) + raw(count) + bytes);
  }
  // A key with a value of any type number and any bytes.
  void pair(const std::string& key, uint32_t type, const std::string& bytes) {
    metadata_ += sized(key) + raw(type) + bytes;
    ++pairs_;
  }

  // `shape` has the rows first, as everywhere but in the file.
  void tensor(const std::string& name, uint32_t type, const std::vector<uint64_t>& shape,
              const std::string& bytes) {
    tensor_at(name, type, shape, data_.size());
    data_ += bytes;
    data_.resize((data_.size() + kAlignment - 1) / kAlignment * kAlignment, '\0');
  }
  // An entry of the table alone.
  void tensor_at(const std::string& name, uint32_t type, const std::vector<uint64_t>& shape,
                 uint64_t offset) {
    table_ += sized(name) + raw(uint32_t(shape.size()));
    for (size_t i = shape.size(); i > 0; --i) table_ += raw(shape[i - 1]);
    table_ += raw(type) + raw(offset);
    ++tensors_;
  }

  size_t header_bytes() const { return 24 + metadata_.size() + table_.size(); }
  std::string bytes(uint32_t version = 3) const {
    std::string file = "GGUF" + raw(version) + raw(tensors_) + raw(pairs_) + metadata_ + table_;
    file.resize((file.size() + kAlignment - 1) / kAlignment * kAlignment, '\0');
    return file + data_;
  }

  template <class T>
  static std::string raw(T value) {
    return {reinterpret_cast<const char*>(&value), sizeof(value)};
  }
  static std::string sized(std::string_view text) {
    return raw(uint64_t(text.size())) + std::string(text);
  }

 private:
  static constexpr size_t kAlignment = 32;
  template <class T>
  static std::string many(const std::vector<T>& values) {
    return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
  }

  uint64_t pairs_ = 0, tensors_ = 0;
  std::string metadata_, table_, data_;
};

}  // namespace kivi
