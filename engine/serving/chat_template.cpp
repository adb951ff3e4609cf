// SPDX-License-Identifier: Apache-2.0
#include "engine/serving/chat_template.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "engine/jinja/evaluator.h"
#include "engine/jinja/parser.h"

namespace kivi {
namespace {

using jinja::Failure;
using jinja::Value;
using nlohmann::ordered_json;

constexpr int64_t kSteps = 4'000'000, kStepsPerWeight = 32;
constexpr int64_t kBytes = 64 << 20, kBytesPerByte = 16;
constexpr size_t kTextBytes = 64 << 20;

Value to_value(const ordered_json& json, int64_t& bytes) {
  bytes += int64_t(sizeof(Value));
  switch (json.type()) {
    case ordered_json::value_t::boolean:
      return Value::boolean(json.get<bool>());
    case ordered_json::value_t::number_integer:
      return Value::integer(json.get<int64_t>());
    case ordered_json::value_t::number_unsigned:
      if (json.get<uint64_t>() > uint64_t(INT64_MAX))
        jinja::fail(fmt::format("the number {} does not fit in 64 bits", json.get<uint64_t>()));
      return Value::integer(int64_t(json.get<uint64_t>()));
    case ordered_json::value_t::number_float:
      return Value(json.get<double>());
    case ordered_json::value_t::string:
      bytes += int64_t(json.get_ref<const std::string&>().size());
      return Value(json.get<std::string>());
    case ordered_json::value_t::array: {
      std::vector<Value> items;
      items.reserve(json.size());
      for (const ordered_json& item : json) items.push_back(to_value(item, bytes));
      return jinja::make_list(std::move(items));
    }
    case ordered_json::value_t::object: {
      jinja::Dict dict;
      for (const auto& [key, item] : json.items()) {
        bytes += int64_t(key.size());
        dict.set(Value(key), to_value(item, bytes));
      }
      return jinja::make_dict(std::move(dict));
    }
    default:
      return Value::none();
  }
}

}  // namespace

struct ChatTemplate::State {
  std::string text, origin;
  jinja::Template tree;
};

ChatTemplate::ChatTemplate(std::unique_ptr<const State> state) : state_(std::move(state)) {}
ChatTemplate::~ChatTemplate() = default;
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;

const std::string& ChatTemplate::text() const { return state_->text; }

Result<ChatTemplate> ChatTemplate::parse(const ChatTemplateSource& source) {
  auto state = std::make_unique<State>();
  state->text = source.text;
  state->origin = source.origin;
  try {
    state->tree = jinja::parse_template(source.text);
  } catch (const Failure& failure) {
    return Error{
        failure.unsupported ? ErrorCode::unsupported : ErrorCode::invalid,
        fmt::format("{}: chat template, line {}: {}", source.origin, failure.line, failure.message),
        "chat_template"};
  }
  return ChatTemplate(std::move(state));
}

Result<std::string> ChatTemplate::render(const ordered_json& variables, std::time_t now) const {
  try {
    std::vector<std::pair<std::string, Value>> values;
    int64_t weight = 0, bytes = 0;
    for (const auto& [name, json] : variables.items()) {
      values.emplace_back(name, to_value(json, bytes));
      weight += jinja::weight_of(values.back().second);
    }
    const jinja::Limits limits{kSteps + kStepsPerWeight * weight, kBytes + kBytesPerByte * bytes,
                               kTextBytes};
    return jinja::Evaluator(state_->tree, limits, now).run(values);
  } catch (const Failure& failure) {
    if (failure.raised)
      return Error{ErrorCode::invalid, fmt::format("the chat template says: {}", failure.message)};
    return Error{
        failure.unsupported ? ErrorCode::unsupported : ErrorCode::invalid,
        fmt::format("the chat template failed in line {}: {}", failure.line, failure.message)};
  }
}

}  // namespace kivi
