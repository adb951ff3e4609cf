// SPDX-License-Identifier: Apache-2.0
// Regex is a PCRE2 pattern over UTF-8 with Unicode classes. Tokenizers split text with it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

// PCRE2's own types (pcre2_code_8, ...): its header stays in regex.cpp.
struct pcre2_real_code_8;
struct pcre2_real_match_data_8;
struct pcre2_real_match_context_8;
struct pcre2_real_jit_stack_8;

namespace kivi {

// A part of a text: bytes [begin, end).
struct Span {
  uint32_t begin = 0, end = 0;
};

// Returns a pattern that matches `text` and nothing else.
std::string regex_literal(std::string_view text);

// Memory for matching. One thread at a time may use it, for any number of calls.
class RegexScratch {
 public:
  RegexScratch();
  ~RegexScratch();
  RegexScratch(const RegexScratch&) = delete;
  RegexScratch& operator=(const RegexScratch&) = delete;

 private:
  friend class Regex;
  pcre2_real_match_data_8* match_ = nullptr;
  pcre2_real_match_context_8* context_ = nullptr;
  pcre2_real_jit_stack_8* stack_ = nullptr;
};

// Immutable. Many threads may use it at once, each with its own scratch.
class Regex {
 public:
  // Compiles a pattern. The error (`unsupported`) shows the pattern and PCRE2's message.
  static Result<Regex> compile(const std::string& pattern);

  // Appends the matches in `text` (valid UTF-8, below 4 GiB) in order. Matches are not empty and do
  // not overlap. The search ends early if PCRE2 reaches one of its own limits.
  void find_all(std::string_view text, RegexScratch& scratch, std::vector<Span>& out) const;

 private:
  explicit Regex(std::shared_ptr<const pcre2_real_code_8> code) : code_(std::move(code)) {}
  std::shared_ptr<const pcre2_real_code_8> code_;
};

}  // namespace kivi
