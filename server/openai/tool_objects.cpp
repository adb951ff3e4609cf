// SPDX-License-Identifier: Apache-2.0
// Tool calls that are JSON objects: those of Hermes, Qwen 2.5, SmolLM2, Mistral and Llama 3.
#include <utility>

#include "server/openai/json_scanner.h"
#include "server/openai/tool_region.h"

namespace kivi {
namespace {

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
      if (state == JsonValueScanner::State::whole) {
        key_.clear();
        step_ = unquote_json(text_, key_) ? Step::colon : Step::wrong;
      } else if (state != JsonValueScanner::State::more) {
        step_ = Step::wrong;
      }
    } else if (!is_json_blank(c)) {
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
    if (state == JsonValueScanner::State::wrong) {
      step_ = Step::wrong;
      return;
    }
    const bool blank_before = text_.empty() && is_json_blank(c);
    if (state != JsonValueScanner::State::whole_before && !blank_before) {
      text_ += c;
      // A string holds the JSON of the arguments: it is given at its end.
      if (is_arguments() && text_.front() != '"') arguments(std::string_view(&c, 1), out);
    }
    if (state == JsonValueScanner::State::more) return;
    step_ = Step::outside;
    end_value(out);
    if (state == JsonValueScanner::State::whole_before && !is_json_blank(c)) {
      sign(c, out);
    }
  }

  void end_value(ToolDelta& out) {
    if (key_ == "name" && !named_) {
      if (!unquote_json(text_, name_) || name_.empty() || (needs_known_ && !known(name_))) {
        step_ = Step::wrong;
        return;
      }
      named_ = true;
      raw_.clear();
      begin_call(name_, out);
      more_arguments(std::exchange(waiting_, {}), out);
    } else if (is_arguments() && text_.front() == '"') {
      std::string inside;
      if (unquote_json(text_, inside)) arguments(inside, out);
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
  JsonValueScanner scanner_;
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
    if (end_.empty() && between() && calls_ == before_ && at_begin_ && !is_json_blank(c) &&
        c != '[' && c != '{') {
      named_ = Named::name;  // [TOOL_CALLS]name{...}
      name_ = c;
      return;
    }
    if (!is_json_blank(c)) at_begin_ = false;
    take(c, out);
    if (wrong()) give_back(out);
  }

  // Holds back what may become the mark.
  void content(char c, ToolDelta& out) {
    if (after_call_ && is_json_blank(c)) return;  // between calls, and behind the last one
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
        while (!name_.empty() && is_json_blank(name_.back())) name_.pop_back();
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
    if (scanner_.take(c) != JsonValueScanner::State::more) leave();
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
  JsonValueScanner scanner_;
  Named named_ = Named::no;
  bool inside_ = false, at_begin_ = false, after_call_ = false;
  int before_ = 0;  // calls before the region
};

// Objects from the beginning of the text on, without a mark.
class BareParser final : public ObjectsParser {
 public:
  BareParser(bool list, std::vector<std::string> names)
      : ObjectsParser(std::move(names)), list_(list) {
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
      if (!begun_ && is_json_blank(c)) {
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

}  // namespace

std::unique_ptr<ToolParser> make_marked_parser(std::string begin, std::string end,
                                               std::vector<std::string> names) {
  return std::make_unique<MarkedParser>(std::move(begin), std::move(end), std::move(names));
}

std::unique_ptr<ToolParser> make_bare_parser(bool list, std::vector<std::string> names) {
  return std::make_unique<BareParser>(list, std::move(names));
}

}  // namespace kivi
