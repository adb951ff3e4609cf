// SPDX-License-Identifier: Apache-2.0
// SseParser reads server-sent events from bytes that come in any pieces. It keeps only the field
// `data`, which is all that the protocol of OpenAI uses.
#pragma once

#include <cstring>
#include <string>
#include <string_view>

namespace kivi::load {

class SseParser {
 public:
  // Calls on_event(std::string_view data) for each event that `bytes` complete, in order. Events
  // without data (comments, "event:" alone) are skipped. The view is valid during the call. Lines
  // end in \n, \r\n or \r. Several data lines are joined by \n.
  template <class F>
  void feed(std::string_view bytes, F&& on_event) {
    while (!bytes.empty()) {
      if (skip_newline_ && bytes.front() == '\n') {  // of a \r\n whose \r has ended the line
        skip_newline_ = false;
        bytes.remove_prefix(1);
        continue;
      }
      skip_newline_ = false;
      const size_t end = line_end(bytes);
      if (end == std::string_view::npos) {
        line_ += bytes;
        return;
      }
      skip_newline_ = bytes[end] == '\r';
      if (line_.empty()) {
        take_line(bytes.substr(0, end), on_event);
      } else {
        line_ += bytes.substr(0, end);
        take_line(line_, on_event);
        line_.clear();
      }
      bytes.remove_prefix(end + 1);
    }
  }

  // Drops the part of an unfinished event.
  void reset() {
    line_.clear();
    data_.clear();
    has_data_ = skip_newline_ = false;
  }

 private:
  static size_t line_end(std::string_view bytes) {
    const void* newline = std::memchr(bytes.data(), '\n', bytes.size());
    const size_t end = newline == nullptr
                           ? bytes.size()
                           : size_t(static_cast<const char*>(newline) - bytes.data());
    const void* carriage = std::memchr(bytes.data(), '\r', end);
    if (carriage != nullptr) return size_t(static_cast<const char*>(carriage) - bytes.data());
    return newline == nullptr ? std::string_view::npos : end;
  }

  template <class F>
  void take_line(std::string_view line, F&& on_event) {
    if (line.empty()) {
      if (has_data_) on_event(std::string_view(data_));
      data_.clear();
      has_data_ = false;
      return;
    }
    if (!line.starts_with("data:")) return;
    line.remove_prefix(5);
    if (line.starts_with(' ')) line.remove_prefix(1);
    if (has_data_) data_ += '\n';
    data_ += line;
    has_data_ = true;
  }

  std::string line_;  // the beginning of a line whose end has not come
  std::string data_;  // of the event
  bool has_data_ = false;
  bool skip_newline_ = false;
};

}  // namespace kivi::load
