// Regex: a PCRE2 pattern over UTF-8 with Unicode classes, for the split patterns of tokenizers.
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

// `text` as a pattern that matches it and nothing else.
std::string regex_literal(std::string_view text);

// Memory for matching, of one thread; used again and again.
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

// Immutable; many threads may use it, each with a scratch of its own.
class Regex {
 public:
  // Errors (unsupported) show the pattern and what PCRE2 says about it.
  static Result<Regex> compile(const std::string& pattern);

  // Appends the matches in `text` (valid UTF-8, below 4 GiB), first to last; none is empty, none
  // overlap. A match that PCRE2 gives up (its own limits) ends the search.
  void find_all(std::string_view text, RegexScratch& scratch, std::vector<Span>& out) const;

 private:
  explicit Regex(std::shared_ptr<const pcre2_real_code_8> code) : code_(std::move(code)) {}
  std::shared_ptr<const pcre2_real_code_8> code_;
};

}  // namespace kivi
