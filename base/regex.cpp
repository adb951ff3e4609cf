// SPDX-License-Identifier: Apache-2.0
#include "base/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

namespace kivi {
namespace {
constexpr size_t kJitStackStart = 32 << 10, kJitStackMax = 1 << 20;  // bytes
}

std::string regex_literal(std::string_view text) {
  std::string pattern;
  for (const char c : text) {
    if (c == '\0') {
      pattern += "\\x{0}";
      continue;
    }
    if (std::string_view("\\^$.[]|()?*+{}#").find(c) != std::string_view::npos) pattern += '\\';
    pattern += c;
  }
  return pattern;
}

RegexScratch::RegexScratch()
    : match_(pcre2_match_data_create(1, nullptr)),
      context_(pcre2_match_context_create(nullptr)),
      stack_(pcre2_jit_stack_create(kJitStackStart, kJitStackMax, nullptr)) {
  KIVI_VERIFY(match_ != nullptr && context_ != nullptr);
  if (stack_ != nullptr) pcre2_jit_stack_assign(context_, nullptr, stack_);
}

RegexScratch::~RegexScratch() {
  pcre2_jit_stack_free(stack_);
  pcre2_match_context_free(context_);
  pcre2_match_data_free(match_);
}

Result<Regex> Regex::compile(const std::string& pattern) {
  int code = 0;
  PCRE2_SIZE at = 0;
  pcre2_code* compiled =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &code, &at, nullptr);
  if (compiled == nullptr) {
    PCRE2_UCHAR text[256] = {};
    pcre2_get_error_message(code, text, sizeof text);
    return Error{ErrorCode::unsupported,
                 fmt::format("pattern {} is not understood at {}: {}", pattern, at,
                             reinterpret_cast<const char*>(text)),
                 "tokenizer"};
  }
  pcre2_jit_compile(compiled, PCRE2_JIT_COMPLETE);  // without it matching is slower, not different
  return Regex(
      {compiled, [](const pcre2_code* c) { pcre2_code_free(const_cast<pcre2_code*>(c)); }});
}

void Regex::find_all(std::string_view text, RegexScratch& scratch, std::vector<Span>& out) const {
  const PCRE2_SIZE* range = pcre2_get_ovector_pointer(scratch.match_);
  for (size_t from = 0; from < text.size();) {
    const int found =
        pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                    PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY, scratch.match_, scratch.context_);
    if (found < 0) return;
    out.push_back({uint32_t(range[0]), uint32_t(range[1])});
    from = range[1];
  }
}

}  // namespace kivi
