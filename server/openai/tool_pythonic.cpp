// SPDX-License-Identifier: Apache-2.0
// Tool calls that are written as Python's: those of Llama 3.2 and Llama 4.
#include <cctype>
#include <nlohmann/json.hpp>
#include <utility>

#include "server/json_writer.h"
#include "server/openai/json_scanner.h"
#include "server/openai/tool_region.h"

namespace kivi {
namespace {

// Tells when a Python literal that comes in pieces has ended, so that it is read only once.
class LiteralEnd {
 public:
  void begin_at(size_t at) { *this = LiteralEnd(at); }

  // Returns true if the literal, or the byte that ends a number or a word, stands in `text`.
  bool reached(std::string_view text) {
    for (; at_ < text.size(); ++at_)
      if (take(text[at_])) return true;
    return false;
  }

  LiteralEnd() = default;

 private:
  explicit LiteralEnd(size_t at) : at_(at) {}

  bool take(char c) {
    if (!begun_ && is_json_blank(c)) return false;
    begun_ = true;
    if (quote_ != 0) {
      if (escaped_)
        escaped_ = false;
      else if (c == '\\')
        escaped_ = true;
      else if (c == quote_)
        quote_ = 0;
      return quote_ == 0 && depth_ == 0;
    }
    if (c == '"' || c == '\'') {
      quote_ = c;
      return false;
    }
    if (c == '[' || c == '(' || c == '{') {
      ++depth_;
      return false;
    }
    if (c == ']' || c == ')' || c == '}') return depth_ == 0 || --depth_ == 0;
    return depth_ == 0 && (c == ',' || is_json_blank(c));
  }

  size_t at_ = 0;
  int depth_ = 0;
  char quote_ = 0;  // the one that ends the string; 0: not in a string
  bool escaped_ = false, begun_ = false;
};

// Appends a number of Python. JSON has no numbers such as +1 and 1., so these become strings.
void append_number(const std::string& word, std::string& json) {
  if (nlohmann::json::accept(word))
    json += word;
  else
    append_json_string(json, word);
}

constexpr size_t kNameBytesMax = 256;  // of a function or a parameter

// [name(key=value, ...), ...] with Python's literals.
class PythonicParser final : public RegionParser {
 public:
  using RegionParser::RegionParser;

  void feed(std::string_view text, ToolDelta& out) override {
    if (content_) {
      out.content += text;
      return;
    }
    raw_ += text;
    while (step(out)) {
    }
  }

  void finish(ToolDelta& out) override {
    if (!content_ && calls_ == 0) out.content += raw_;
    raw_.clear();
  }

 private:
  enum class State { begin, name, key, value, behind_value, behind_call, done };

  char peek() const { return at_ < raw_.size() ? raw_[at_] : '\0'; }
  bool skip_blanks() {
    while (at_ < raw_.size() && is_json_blank(raw_[at_])) ++at_;
    return at_ < raw_.size();
  }

  bool give_up(ToolDelta& out) {
    out.content += calls_ == 0 ? raw_ : raw_.substr(std::min(at_, raw_.size()));
    raw_.clear();
    at_ = 0;
    content_ = true;
    return false;
  }

  // False: more text is needed, or the rest is content.
  bool step(ToolDelta& out) {
    if (!skip_blanks()) return false;
    switch (state_) {
      case State::begin:
        if (peek() != '[') return give_up(out);
        ++at_;
        state_ = State::name;
        return true;
      case State::name: {
        size_t end = at_;
        while (end < raw_.size() && (std::isalnum(static_cast<unsigned char>(raw_[end])) ||
                                     raw_[end] == '_' || raw_[end] == '.' || raw_[end] == '-'))
          ++end;
        if (end - at_ > kNameBytesMax) return give_up(out);
        if (end == raw_.size()) return false;
        std::string name = raw_.substr(at_, end - at_);
        if (raw_[end] != '(' || !known(name)) return give_up(out);
        at_ = end + 1;
        begin_call(std::move(name), out);
        first_argument_ = true;
        state_ = State::key;
        return true;
      }
      case State::key: {
        if (peek() == ')') {
          ++at_;
          more_arguments(first_argument_ ? "{}" : "}", out);
          state_ = State::behind_call;
          return true;
        }
        size_t end = at_;
        while (end < raw_.size() &&
               (std::isalnum(static_cast<unsigned char>(raw_[end])) || raw_[end] == '_'))
          ++end;
        const std::string key = raw_.substr(at_, end - at_);
        while (end < raw_.size() && is_json_blank(raw_[end])) ++end;
        if (end - at_ > kNameBytesMax) return give_up(out);
        if (end == raw_.size()) return false;
        if (raw_[end] != '=' || key.empty()) return give_up(out);
        std::string json = first_argument_ ? "{" : ", ";
        append_json_string(json, key);
        pending_ = json + ": ";
        at_ = end + 1;
        value_end_.begin_at(at_);
        state_ = State::value;
        return true;
      }
      case State::value: {
        if (!value_end_.reached(raw_)) return false;
        std::string json;
        size_t end = at_;
        if (literal(end, json, 0) != Literal::whole) return give_up(out);
        at_ = end;
        first_argument_ = false;
        more_arguments(pending_ + json, out);
        state_ = State::behind_value;
        return true;
      }
      case State::behind_value:
        if (peek() != ',' && peek() != ')') return give_up(out);
        if (peek() == ',') ++at_;
        state_ = State::key;
        return true;
      case State::behind_call:
        if (peek() == ',') {
          ++at_;
          state_ = State::name;
          return true;
        }
        if (peek() != ']') return give_up(out);
        ++at_;
        state_ = State::done;
        return true;
      case State::done:
        break;
    }
    // What stands behind the list and blanks.
    out.content += raw_.substr(at_);
    raw_.clear();
    at_ = 0;
    content_ = true;
    return false;
  }

  enum class Literal { whole, more, wrong };

  // A Python literal as JSON. `at` moves behind it. A number or a word ends with the byte behind
  // it.
  Literal literal(size_t& at, std::string& json, int depth) {
    constexpr int kDepthMax = 32;
    while (at < raw_.size() && is_json_blank(raw_[at])) ++at;
    if (at >= raw_.size()) return Literal::more;
    if (depth > kDepthMax) return Literal::wrong;
    const char c = raw_[at];
    if (c == '"' || c == '\'') return quoted(at, json);
    if (c == '[' || c == '(' || c == '{') return container(at, json, depth);
    size_t end = at;
    while (end < raw_.size() &&
           (std::isalnum(static_cast<unsigned char>(raw_[end])) || raw_[end] == '.' ||
            raw_[end] == '-' || raw_[end] == '+' || raw_[end] == '_'))
      ++end;
    if (end == raw_.size()) return Literal::more;
    const std::string word = raw_.substr(at, end - at);
    if (word == "True" || word == "true")
      json += "true";
    else if (word == "False" || word == "false")
      json += "false";
    else if (word == "None" || word == "null")
      json += "null";
    else if (!word.empty() && word.find_first_not_of("0123456789.eE+-") == std::string::npos)
      append_number(word, json);
    else
      return Literal::wrong;
    at = end;
    return Literal::whole;
  }

  Literal quoted(size_t& at, std::string& json) {
    const char quote = raw_[at];
    std::string text;
    for (size_t i = at + 1; i < raw_.size(); ++i) {
      if (raw_[i] == quote) {
        append_json_string(json, text);
        at = i + 1;
        return Literal::whole;
      }
      if (raw_[i] != '\\') {
        text += raw_[i];
        continue;
      }
      if (++i >= raw_.size()) return Literal::more;
      constexpr std::string_view kFrom = "nrt", kTo = "\n\r\t";
      const size_t known_escape = kFrom.find(raw_[i]);
      if (known_escape != std::string_view::npos)
        text += kTo[known_escape];
      else if (raw_[i] == '\\' || raw_[i] == '\'' || raw_[i] == '"')
        text += raw_[i];
      else
        text += {'\\', raw_[i]};
    }
    return Literal::more;
  }

  Literal container(size_t& at, std::string& json, int depth) {
    const bool dict = raw_[at] == '{';
    const char close = dict ? '}' : raw_[at] == '[' ? ']' : ')';
    json += dict ? '{' : '[';
    size_t i = at + 1;
    for (bool first = true;; first = false) {
      while (i < raw_.size() && is_json_blank(raw_[i])) ++i;
      if (i >= raw_.size()) return Literal::more;
      if (raw_[i] == close) break;
      if (!first) {
        if (raw_[i] != ',') return Literal::wrong;
        ++i;
        while (i < raw_.size() && is_json_blank(raw_[i])) ++i;
        if (i >= raw_.size()) return Literal::more;
        if (raw_[i] == close) break;
        json += ", ";
      }
      if (dict) {
        if (raw_[i] != '"' && raw_[i] != '\'') return Literal::wrong;
        if (const Literal key = quoted(i, json); key != Literal::whole) return key;
        while (i < raw_.size() && is_json_blank(raw_[i])) ++i;
        if (i >= raw_.size()) return Literal::more;
        if (raw_[i++] != ':') return Literal::wrong;
        json += ": ";
      }
      if (const Literal item = literal(i, json, depth + 1); item != Literal::whole) return item;
    }
    json += dict ? '}' : ']';
    at = i + 1;
    return Literal::whole;
  }

  State state_ = State::begin;
  std::string raw_, pending_;
  LiteralEnd value_end_;
  size_t at_ = 0;
  bool first_argument_ = true, content_ = false;
};

}  // namespace

std::unique_ptr<ToolParser> make_pythonic_parser(std::vector<std::string> names) {
  return std::make_unique<PythonicParser>(std::move(names));
}

}  // namespace kivi
