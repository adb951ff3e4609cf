// SPDX-License-Identifier: Apache-2.0
#include "engine/serving/chat_prompt.h"

#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <nlohmann/json.hpp>
#include <optional>
#include <unordered_map>

#include "base/regex.h"
#include "base/utf8.h"
#include "engine/serving/chat_template.h"
#include "engine/text/text_normalizer.h"

namespace kivi {
namespace {

using nlohmann::ordered_json;

// Noncharacters of Unicode, which no text has: one stands inside what must not be read as a special
// token, the other where the final message ends.
constexpr std::string_view kPlain = "\xEF\xB7\x90";  // U+FDD0
constexpr std::string_view kEnd = "\xEF\xB7\x91";    // U+FDD1

Error wrong(std::string message) {
  return Error{ErrorCode::invalid, std::move(message), "messages"};
}

// The special tokens by their spelling.
using SpecialTokens = std::unordered_map<std::string, int32_t>;

SpecialTokens special_tokens(const Tokenizer& tokenizer) {
  SpecialTokens special;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    const std::string& name = tokenizer.token_bytes(id, /*skip_special=*/false);
    const bool shown = !tokenizer.token_bytes(id, /*skip_special=*/true).empty();
    // A message's special tokens are marked behind their first character, which leaves a token of
    // one character whole. So such a token is always a text.
    const bool single = utf8_length(name) < 2;
    if (!shown && !single && name.find("\\E") == std::string::npos) special.emplace(name, id);
  }
  return special;
}

// Finds them in a text; none where there are none.
Result<std::optional<Regex>> finder_of(const SpecialTokens& special) {
  if (special.empty()) return std::optional<Regex>();
  // Of those that begin at the same place the longest is found.
  std::vector<std::string> names;
  for (const auto& [name, id] : special) names.push_back(name);
  std::ranges::sort(names, [](const auto& a, const auto& b) {
    return a.size() != b.size() ? a.size() > b.size() : a < b;
  });
  std::string pattern;
  for (const std::string& name : names)
    pattern += (pattern.empty() ? "\\Q" : "|\\Q") + name + "\\E";
  KIVI_ASSIGN_OR_RETURN(Regex regex, Regex::compile(pattern));
  return std::optional<Regex>(std::move(regex));
}

class TemplatePrompt final : public ChatPrompt {
 public:
  TemplatePrompt(ChatTemplate chat_template, const Tokenizer& tokenizer, SpecialTokens special,
                 std::optional<Regex> finder)
      : template_(std::move(chat_template)),
        tokenizer_(tokenizer),
        special_(std::move(special)),
        finder_(std::move(finder)) {}

  Result<std::string> text(const ChatInput& input) const override {
    KIVI_ASSIGN_OR_RETURN(const std::string text, marked_text(input));
    return replace_all(text, kPlain, "");
  }

  Result<std::vector<int32_t>> ids(const ChatInput& input) const override {
    KIVI_ASSIGN_OR_RETURN(const std::string text, marked_text(input));
    if (input.text_bytes_max > 0 && text.size() > input.text_bytes_max)
      return wrong(
          fmt::format("messages make a prompt of {} bytes, must be at most {} "
                      "(--max-tokenize-bytes)",
                      text.size(), input.text_bytes_max));
    std::vector<int32_t> ids;
    if (input.add_special_tokens) ids = tokenizer_.encode("", true);
    std::vector<Span> found;
    RegexScratch scratch;
    if (finder_) finder_->find_all(text, scratch, found);
    found.push_back({uint32_t(text.size()), uint32_t(text.size())});
    size_t begin = 0;
    for (const Span& token : found) {
      const std::string part =
          replace_all(std::string_view(text).substr(begin, token.begin - begin), kPlain, "");
      if (!part.empty()) {
        const auto more =
            begin == 0 ? tokenizer_.encode(part, false) : tokenizer_.encode_after_special(part);
        ids.insert(ids.end(), more.begin(), more.end());
      }
      const auto name = text.substr(token.begin, token.end - token.begin);
      if (!name.empty()) ids.push_back(special_.at(name));
      begin = token.end;
    }
    return ids;
  }

  const std::string& template_text() const override { return template_.text(); }

 private:
  // The text, in which what messages spell of special tokens is marked.
  Result<std::string> marked_text(const ChatInput& input) const;
  void mark(ordered_json& value, RegexScratch& scratch) const;
  void mark(std::string& text, RegexScratch& scratch) const;

  ChatTemplate template_;
  const Tokenizer& tokenizer_;
  SpecialTokens special_;
  std::optional<Regex> finder_;  // of special_
};

void TemplatePrompt::mark(std::string& text, RegexScratch& scratch) const {
  if (text.find(kPlain.substr(0, 2)) != std::string::npos) {
    text = replace_all(text, kPlain, kReplacementCharacter);
    text = replace_all(text, kEnd, kReplacementCharacter);
  }
  if (!finder_) return;
  // Again until there are none: a token may stand inside another.
  std::vector<Span> found;
  for (finder_->find_all(text, scratch, found); !found.empty();
       finder_->find_all(text, scratch, found)) {
    std::string marked;
    size_t begin = 0;
    for (const Span& token : found) {
      size_t inside = token.begin + 1;  // behind the first character
      while (inside < token.end && (text[inside] & 0xC0) == 0x80) ++inside;
      marked.append(text, begin, inside - begin).append(kPlain);
      begin = inside;
    }
    text = marked.append(text, begin);
    found.clear();
  }
}

void TemplatePrompt::mark(ordered_json& value, RegexScratch& scratch) const {
  if (value.is_string()) {
    mark(value.get_ref<std::string&>(), scratch);
  } else if (value.is_array()) {
    for (ordered_json& item : value) mark(item, scratch);
  } else if (value.is_object()) {
    ordered_json marked = ordered_json::object();
    for (auto& [key, item] : value.items()) {
      std::string name = key;
      mark(name, scratch);
      mark(item, scratch);
      marked[name] = std::move(item);
    }
    value = std::move(marked);
  }
}

// A message that calls tools may have no content. Templates that ask whether it is none see null.
// The others join it with text, and see an empty one.
void complete_contents(ordered_json& messages, const std::string& template_text) {
  static constexpr std::string_view kTests[] = {"content is none",       "content'] is none",
                                                "content\"] is none",    "content is not none",
                                                "content'] is not none", "content\"] is not none",
                                                "content == none",       "content != none"};
  const bool knows_none = std::ranges::any_of(
      kTests, [&](std::string_view test) { return template_text.find(test) != std::string::npos; });
  for (ordered_json& message : messages)
    if (message.is_object() && (!message.contains("content") || message["content"].is_null()))
      message["content"] = knows_none ? ordered_json(nullptr) : ordered_json("");
}

// Appends the mark of the end to the last message's text.
Status mark_end(ordered_json& messages) {
  ordered_json& last = messages.back();
  if (!last.contains("content") || !last["content"].is_string())
    return wrong("the last message has no text to continue");
  last["content"].get_ref<std::string&>() += std::string(kEnd) + " ";
  return ok_status();
}

Result<std::string> TemplatePrompt::marked_text(const ChatInput& input) const {
  ordered_json variables = ordered_json::object();
  const auto name_token = [&](const char* name, std::optional<int32_t> id) {
    if (id) variables[name] = tokenizer_.token_name(*id);
  };
  name_token("bos_token", tokenizer_.bos_id());
  name_token("eos_token", tokenizer_.eos_id());
  for (const char* name : {"tools", "documents"}) variables[name] = nullptr;
  variables["add_generation_prompt"] = input.add_generation_prompt;
  RegexScratch scratch;
  for (const auto& [name, value] : input.variables->items()) {
    variables[name] = value;
    mark(variables[name], scratch);
  }
  if (variables["messages"].is_array()) complete_contents(variables["messages"], template_.text());
  if (input.continue_final_message) KIVI_RETURN_IF_ERROR(mark_end(variables["messages"]));

  Result<std::string> text = template_.render(variables, std::time(nullptr));
  if (!text.ok()) return Error{text.error().code, text.error().message, "messages"};
  if (!input.continue_final_message) return text;
  const size_t end = text->rfind(kEnd);
  if (end == std::string::npos)
    return wrong(
        "the chat template leaves the last message out, it cannot be "
        "continued");
  // Where the template trims messages, the space behind the mark is gone.
  const bool kept = text->compare(end + kEnd.size(), 1, " ") == 0;
  text->resize(end);
  if (!kept) {
    const size_t last = text->find_last_not_of(" \t\n\r\f\v");
    text->resize(last == std::string::npos ? 0 : last + 1);
  }
  return text;
}

}  // namespace

Result<std::unique_ptr<ChatPrompt>> ChatPrompt::make(const ChatTemplateSource& source,
                                                     const Tokenizer& tokenizer) {
  KIVI_ASSIGN_OR_RETURN(ChatTemplate chat_template, ChatTemplate::parse(source));
  SpecialTokens special = special_tokens(tokenizer);
  KIVI_ASSIGN_OR_RETURN(std::optional<Regex> finder, finder_of(special));
  return std::unique_ptr<ChatPrompt>(std::make_unique<TemplatePrompt>(
      std::move(chat_template), tokenizer, std::move(special), std::move(finder)));
}

}  // namespace kivi
