// SPDX-License-Identifier: Apache-2.0
#include "server/openai/tool_parser.h"

#include <algorithm>
#include <cctype>
#include <utility>

#include "server/json_writer.h"

namespace kivi {
namespace {

constexpr std::string_view kBlanks = " \t\r\n";

bool is_blank(char c) { return kBlanks.find(c) != std::string_view::npos; }

// The text of a JSON string, with its quotes; false where it is none.
bool unquote(std::string_view json, std::string& out) {
  if (json.size() < 2 || json.front() != '"' || json.back() != '"') return false;
  const auto hex = [&](size_t at) {
    int value = 0;
    for (size_t i = at; i < at + 4; ++i) {
      const char c = i < json.size() ? json[i] : '\0';
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) return -1;
      value = value * 16 + digit;
    }
    return value;
  };
  const auto put = [&](uint32_t c) {
    const auto byte = [&](uint32_t bits) { out += char(uint8_t(bits)); };
    if (c < 0x80) {
      byte(c);
    } else if (c < 0x800) {
      byte(0xC0 | c >> 6), byte(0x80 | (c & 63));
    } else if (c < 0x10000) {
      byte(0xE0 | c >> 12), byte(0x80 | (c >> 6 & 63)), byte(0x80 | (c & 63));
    } else {
      byte(0xF0 | c >> 18), byte(0x80 | (c >> 12 & 63)), byte(0x80 | (c >> 6 & 63));
      byte(0x80 | (c & 63));
    }
  };
  for (size_t i = 1; i + 1 < json.size(); ++i) {
    if (json[i] != '\\') {
      out += json[i];
      continue;
    }
    const char c = json[++i];
    constexpr std::string_view kFrom = "nrtbf", kTo = "\n\r\t\b\f";
    if (const size_t at = kFrom.find(c); at != std::string_view::npos) {
      out += kTo[at];
    } else if (c == 'u') {
      int unit = hex(i + 1);
      if (unit < 0) return false;
      i += 4;
      uint32_t code = uint32_t(unit);
      if (code >= 0xD800 && code < 0xDC00 && json.substr(i + 1, 2) == "\\u") {
        const int low = hex(i + 3);
        if (low >= 0xDC00 && low < 0xE000) {
          code = 0x10000 + ((code - 0xD800) << 10) + uint32_t(low - 0xDC00);
          i += 6;
        }
      }
      put(code >= 0xD800 && code < 0xE000 ? 0xFFFD : code);
    } else {
      out += c;
    }
  }
  return true;
}

// Reads one JSON value byte by byte and tells when it is whole. Checks brackets and strings, not
// the rest: what a model writes goes to the client as it is.
class ValueScanner {
 public:
  enum class State { more, whole, whole_before, wrong };

  // `whole`: the value ends with this byte. `whole_before`: it ended before this byte (a number).
  State take(char c) {
    if (string_) {
      if (escaped_)
        escaped_ = false;
      else if (c == '\\')
        escaped_ = true;
      else if (c == '"')
        string_ = false;
      return string_ || depth_ > 0 ? State::more : State::whole;
    }
    if (scalar_) {
      if (c == ',' || c == '}' || c == ']' || is_blank(c)) return State::whole_before;
      return State::more;
    }
    switch (c) {
      case '"':
        string_ = begun_ = true;
        return State::more;
      case '{':
      case '[':
        begun_ = true;
        ++depth_;
        return State::more;
      case '}':
      case ']':
        if (depth_ == 0) return State::wrong;
        return --depth_ == 0 ? State::whole : State::more;
      default:
        if (depth_ > 0 || (is_blank(c) && !begun_)) return State::more;
        begun_ = scalar_ = true;
        return c == ',' || c == ':' ? State::wrong : State::more;
    }
  }

 private:
  int depth_ = 0;
  bool string_ = false, escaped_ = false, scalar_ = false, begun_ = false;
};

// Parsers that see text until a region of calls begins, and that give a region back as content if
// it turns out to be none.
class RegionParser : public ToolParser {
 public:
  explicit RegionParser(std::vector<std::string> names) : names_(std::move(names)) {}

 protected:
  bool known(const std::string& name) const {
    return std::ranges::find(names_, name) != names_.end();
  }
  void begin_call(std::string name, ToolDelta& out) {
    out.calls.push_back({calls_++, std::move(name), ""});
  }
  void more_arguments(std::string_view text, ToolDelta& out) {
    if (text.empty()) return;
    if (!out.calls.empty() && out.calls.back().index == calls_ - 1)
      out.calls.back().arguments += text;
    else
      out.calls.push_back({calls_ - 1, "", std::string(text)});
  }

  std::vector<std::string> names_;
};

// Objects with "name" and "arguments" or "parameters", alone, in a list, or one behind another.
class ObjectsParser : public RegionParser {
 public:
  using RegionParser::RegionParser;

 protected:
  enum class Step { outside, key, colon, value, wrong };

  void begin_objects() {
    step_ = Step::outside;
    raw_.clear();
    lists_ = 0;
    in_object_ = false;
  }
  // True where the region may end: between objects and lists.
  bool between() const { return step_ == Step::outside && !in_object_ && lists_ == 0; }
  bool wrong() const { return step_ == Step::wrong; }
  bool started() const { return calls_ > 0; }
  // Of the region, what has not become a call.
  std::string take_raw() { return std::exchange(raw_, {}); }

  void take(char c, ToolDelta& out) {
    raw_ += c;
    if (step_ == Step::value) {
      value(c, out);
    } else if (step_ == Step::key) {
      const auto state = scanner_.take(c);
      text_ += c;
      if (state == ValueScanner::State::whole) {
        key_.clear();
        step_ = unquote(text_, key_) ? Step::colon : Step::wrong;
      } else if (state != ValueScanner::State::more) {
        step_ = Step::wrong;
      }
    } else if (!is_blank(c)) {
      sign(c, out);
    }
  }

 private:
  void sign(char c, ToolDelta& out) {
    if (step_ == Step::colon) {
      if (c != ':') {
        step_ = Step::wrong;
        return;
      }
      step_ = Step::value;
      scanner_ = {};
      text_.clear();
      return;
    }
    if (!in_object_) {
      if (c == '{') {
        in_object_ = true;
        name_.clear();
        named_ = has_arguments_ = false;
        waiting_.clear();
      } else if (c == '[' && lists_ == 0) {
        ++lists_;
      } else if (c == ']' && lists_ > 0) {
        --lists_;
      } else if (c != ',' && c != ';') {
        step_ = Step::wrong;
      }
      return;
    }
    if (c == '"') {
      step_ = Step::key;
      scanner_ = {};
      scanner_.take(c);
      text_ = c;
    } else if (c == '}') {
      end_object(out);
    } else if (c != ',') {
      step_ = Step::wrong;
    }
  }

  bool is_arguments() const { return key_ == "arguments" || key_ == "parameters"; }

  void value(char c, ToolDelta& out) {
    const auto state = scanner_.take(c);
    if (state == ValueScanner::State::wrong) {
      step_ = Step::wrong;
      return;
    }
    const bool blank_before = text_.empty() && is_blank(c);
    if (state != ValueScanner::State::whole_before && !blank_before) {
      text_ += c;
      // A string holds the JSON of the arguments: it is given at its end.
      if (is_arguments() && text_.front() != '"') arguments(std::string_view(&c, 1), out);
    }
    if (state == ValueScanner::State::more) return;
    step_ = Step::outside;
    end_value(out);
    if (state == ValueScanner::State::whole_before && !is_blank(c)) {
      sign(c, out);
    }
  }

  void end_value(ToolDelta& out) {
    if (key_ == "name" && !named_) {
      if (!unquote(text_, name_) || (needs_known_ && !known(name_))) {
        step_ = Step::wrong;
        return;
      }
      named_ = true;
      raw_.clear();
      begin_call(name_, out);
      more_arguments(std::exchange(waiting_, {}), out);
    } else if (is_arguments() && text_.front() == '"') {
      std::string inside;
      if (unquote(text_, inside)) arguments(inside, out);
    }
    if (named_) raw_.clear();
  }

  void arguments(std::string_view text, ToolDelta& out) {
    has_arguments_ = true;
    if (named_)
      more_arguments(text, out);
    else
      waiting_ += text;
  }

  void end_object(ToolDelta& out) {
    in_object_ = false;
    if (!named_) {
      step_ = Step::wrong;
      return;
    }
    if (!has_arguments_) more_arguments("{}", out);
    raw_.clear();
  }

 protected:
  bool needs_known_ = false;

 private:
  Step step_ = Step::outside;
  int lists_ = 0;
  bool in_object_ = false, named_ = false, has_arguments_ = false;
  ValueScanner scanner_;
  std::string raw_, text_, key_, name_, waiting_;
};

// Content up to a mark, then objects, then perhaps an end mark and more content.
class MarkedParser final : public ObjectsParser {
 public:
  MarkedParser(std::string begin, std::string end, std::vector<std::string> names)
      : ObjectsParser(std::move(names)), begin_(std::move(begin)), end_(std::move(end)) {}

  void feed(std::string_view text, ToolDelta& out) override {
    for (const char c : text) take_byte(c, out);
  }

  void finish(ToolDelta& out) override {
    if (inside_ && calls_ == before_) out.content += region_;
    if (!inside_) out.content += held_;
    held_.clear();
    region_.clear();
  }

 private:
  void take_byte(char c, ToolDelta& out) {
    if (!inside_) {
      content(c, out);
      return;
    }
    region_ += c;
    if (named_ != Named::no) {
      name_first(c, out);
      return;
    }
    // The end mark stands between objects.
    if (between() && (!held_.empty() || (!end_.empty() && c == end_.front()))) {
      held_ += c;
      if (held_ == end_) {
        leave();
      } else if (!end_.starts_with(held_)) {
        give_back(out);
      }
      return;
    }
    if (end_.empty() && between() && calls_ == before_ && at_begin_ && !is_blank(c) && c != '[' &&
        c != '{') {
      named_ = Named::name;  // [TOOL_CALLS]name{...}
      name_ = c;
      return;
    }
    if (!is_blank(c)) at_begin_ = false;
    take(c, out);
    if (wrong()) give_back(out);
  }

  // Holds back what may become the mark.
  void content(char c, ToolDelta& out) {
    if (after_call_ && is_blank(c)) return;  // between calls, and behind the last one
    after_call_ = false;
    held_ += c;
    while (!held_.empty() && !begin_.starts_with(held_)) {
      out.content += held_.front();
      held_.erase(0, 1);
    }
    if (held_ != begin_) return;
    region_ = std::exchange(held_, {});
    inside_ = at_begin_ = true;
    before_ = calls_;
    begin_objects();
  }

  void name_first(char c, ToolDelta& out) {
    if (named_ == Named::name) {
      if (c == '{') {
        if (const size_t mark = name_.find("[ARGS]"); mark != std::string::npos) name_.resize(mark);
        if (const size_t mark = name_.find("[CALL_ID]"); mark != std::string::npos)
          name_.resize(mark);
        while (!name_.empty() && is_blank(name_.back())) name_.pop_back();
        begin_call(name_, out);
        more_arguments("{", out);
        scanner_ = {};
        scanner_.take(c);
        named_ = Named::arguments;
      } else {
        name_ += c;
      }
      return;
    }
    more_arguments(std::string_view(&c, 1), out);
    if (scanner_.take(c) != ValueScanner::State::more) leave();
  }

  void leave() {
    inside_ = false;
    after_call_ = calls_ > before_;
    named_ = Named::no;
    held_.clear();
    region_.clear();
  }

  // Not a call: the region is content. Calls that have begun stay; what follows them is content.
  void give_back(ToolDelta& out) {
    out.content += calls_ == before_ ? region_ : take_raw() + held_;
    leave();
    after_call_ = false;
  }

  enum class Named { no, name, arguments };
  const std::string begin_, end_;
  std::string held_;    // may become a mark
  std::string region_;  // since the mark
  std::string name_;
  ValueScanner scanner_;
  Named named_ = Named::no;
  bool inside_ = false, at_begin_ = false, after_call_ = false;
  int before_ = 0;  // calls before the region
};

// Objects from the beginning of the text on, without a mark.
class BareParser final : public ObjectsParser {
 public:
  BareParser(ToolFormat format, std::vector<std::string> names)
      : ObjectsParser(std::move(names)), list_(format == ToolFormat::list) {
    needs_known_ = true;
    begin_objects();
  }

  void feed(std::string_view text, ToolDelta& out) override {
    for (const char c : text) {
      if (content_) {
        out.content += c;
        continue;
      }
      // A tag of Llama 3.1, where special tokens are shown.
      static constexpr std::string_view kTag = "<|python_tag|>";
      if (!begun_ && (c == '<' || !tag_.empty())) {
        tag_ += c;
        if (tag_ == kTag) {
          tag_.clear();
        } else if (!kTag.starts_with(tag_)) {
          out.content += blanks_ + tag_;
          content_ = true;
        }
        continue;
      }
      if (!begun_ && is_blank(c)) {
        blanks_ += c;
        continue;
      }
      if (!begun_ && c != '{' && !(list_ && c == '[')) {
        out.content += blanks_ + c;
        content_ = true;
        continue;
      }
      begun_ = true;
      take(c, out);
      if (!wrong()) continue;
      out.content += (calls_ == 0 ? blanks_ : "") + take_raw();
      content_ = true;
    }
  }

  void finish(ToolDelta& out) override {
    if (content_) return;
    if (!begun_) out.content += blanks_ + tag_;
    if (begun_ && calls_ == 0) out.content += blanks_ + take_raw();
  }

 private:
  const bool list_;
  bool begun_ = false, content_ = false;
  std::string blanks_, tag_;
};

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
    if (!content_ && state_ != State::done) {
      if (calls_ == 0) out.content += raw_;
      raw_.clear();
    }
  }

 private:
  enum class State { begin, name, key, value, behind_value, behind_call, done };

  char peek() const { return at_ < raw_.size() ? raw_[at_] : '\0'; }
  bool skip_blanks() {
    while (at_ < raw_.size() && is_blank(raw_[at_])) ++at_;
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
    if (!skip_blanks() && state_ != State::done) return false;
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
        while (end < raw_.size() && is_blank(raw_[end])) ++end;
        if (end == raw_.size()) return false;
        if (raw_[end] != '=' || key.empty()) return give_up(out);
        std::string json = first_argument_ ? "{" : ", ";
        append_json_string(json, key);
        pending_ = json + ": ";
        at_ = end + 1;
        state_ = State::value;
        return true;
      }
      case State::value: {
        std::string json;
        size_t end = at_;
        const Literal got = literal(end, json, 0);
        if (got == Literal::more) return false;
        if (got == Literal::wrong) return give_up(out);
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
    // What stands behind the list.
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
    while (at < raw_.size() && is_blank(raw_[at])) ++at;
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
      json += word;
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
      while (i < raw_.size() && is_blank(raw_[i])) ++i;
      if (i >= raw_.size()) return Literal::more;
      if (raw_[i] == close) break;
      if (!first) {
        if (raw_[i] != ',') return Literal::wrong;
        ++i;
        while (i < raw_.size() && is_blank(raw_[i])) ++i;
        if (i >= raw_.size()) return Literal::more;
        if (raw_[i] == close) break;
        json += ", ";
      }
      if (dict) {
        if (raw_[i] != '"' && raw_[i] != '\'') return Literal::wrong;
        if (const Literal key = quoted(i, json); key != Literal::whole) return key;
        while (i < raw_.size() && is_blank(raw_[i])) ++i;
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
  size_t at_ = 0;
  bool first_argument_ = true, content_ = false;
};

class ArgumentsParser final : public RegionParser {
 public:
  using RegionParser::RegionParser;

  void feed(std::string_view text, ToolDelta& out) override {
    if (calls_ == 0) {
      while (!text.empty() && is_blank(text.front())) text.remove_prefix(1);
      if (text.empty()) return;
      begin_call(names_.front(), out);
    }
    more_arguments(text, out);
  }
  void finish(ToolDelta&) override {}
};

class NoParser final : public ToolParser {
 public:
  void feed(std::string_view text, ToolDelta& out) override { out.content += text; }
  void finish(ToolDelta&) override {}
};

}  // namespace

ToolFormat tool_format_of(std::string_view name) {
  if (name == "hermes") return ToolFormat::hermes;
  if (name == "llama3_json") return ToolFormat::llama3;
  if (name == "pythonic") return ToolFormat::pythonic;
  if (name == "mistral") return ToolFormat::mistral;
  return ToolFormat::none;
}

ToolFormat tool_format_of_template(std::string_view t) {
  const auto has = [&](std::string_view part) { return t.find(part) != std::string_view::npos; };
  if (!has("tools")) return ToolFormat::none;
  if (has("<tool_call>")) return ToolFormat::hermes;
  if (has("[TOOL_CALLS]")) return ToolFormat::mistral;
  if (has("params_name1=params_value1") || has("func_name1(")) return ToolFormat::pythonic;
  if (has("<|python_tag|>") || has("ipython") || has("\"parameters\": dictionary"))
    return ToolFormat::llama3;
  return ToolFormat::none;
}

std::unique_ptr<ToolParser> make_tool_parser(ToolFormat format, std::vector<std::string> names) {
  switch (format) {
    case ToolFormat::hermes:
      return std::make_unique<MarkedParser>("<tool_call>", "</tool_call>", std::move(names));
    case ToolFormat::mistral:
      return std::make_unique<MarkedParser>("[TOOL_CALLS]", "", std::move(names));
    case ToolFormat::llama3:
    case ToolFormat::list:
      return std::make_unique<BareParser>(format, std::move(names));
    case ToolFormat::pythonic:
      return std::make_unique<PythonicParser>(std::move(names));
    case ToolFormat::arguments:
      return std::make_unique<ArgumentsParser>(std::move(names));
    case ToolFormat::none:
      break;
  }
  return std::make_unique<NoParser>();
}

}  // namespace kivi
