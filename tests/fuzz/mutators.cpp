// SPDX-License-Identifier: Apache-2.0
#include "tests/fuzz/mutators.h"

#include <array>
#include <limits>
#include <nlohmann/json.hpp>
#include <vector>

#include "tests/fuzz/grpc_messages.h"
#include "tests/fuzz/seeds.h"

namespace kivi::fuzz {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;
using nlohmann::ordered_json;

constexpr std::array<int64_t, 14> kIntegers = {
    0,   1,    -1,   2,     63,         64,          65,
    128, 1024, 2048, 65536, 2147483647, -2147483648, std::numeric_limits<int64_t>::max()};
constexpr std::array<double, 11> kNumbers = {0.0,
                                             -0.0,
                                             1.0,
                                             1e-45,
                                             0.5,
                                             2.0,
                                             -2.0,
                                             100.0,
                                             1e308,
                                             std::numeric_limits<double>::quiet_NaN(),
                                             std::numeric_limits<double>::infinity()};

size_t below(size_t count, std::mt19937& random) { return size_t(random() % count); }

template <class List>
const auto& one_of(const List& list, std::mt19937& random) {
  return list[below(std::size(list), random)];
}

std::string any_text(std::mt19937& random) {
  static const std::array<std::string, 8> kTexts = {
      "",        "a",   "fuzz", "king \u00e9\u4f60", std::string("\0x", 2), "\u2581\ufffd",
      "<s></s>", "stop"};
  std::string text = one_of(kTexts, random);
  if (below(8, random) == 0)
    for (int i = 0; i < 6 && !text.empty(); ++i) text += text;
  return text;
}

ordered_json any_value(std::mt19937& random) {
  switch (below(8, random)) {
    case 0:
      return nullptr;
    case 1:
      return below(2, random) == 0;
    case 2:
      return one_of(kIntegers, random);
    case 3:
      return one_of(kNumbers, random);
    case 4:
      return ordered_json::array();
    case 5:
      return ordered_json::object();
    case 6:
      return ordered_json::array({any_text(random), one_of(kIntegers, random)});
    default:
      return any_text(random);
  }
}

void collect(ordered_json& value, std::vector<ordered_json*>& out) {
  out.push_back(&value);
  if (value.is_structured())
    for (ordered_json& inner : value) collect(inner, out);
}

void change_structure(ordered_json& value, std::mt19937& random) {
  if (value.is_object() && (value.empty() || below(2, random) == 0)) {
    static const std::vector<std::string> names = dictionary_of("json");
    value[one_of(names, random)] = any_value(random);
  } else if (value.is_array() && (value.empty() || below(2, random) == 0)) {
    value.push_back(value.empty() ? any_value(random) : ordered_json(one_of(value, random)));
  } else if (value.is_array()) {
    value.erase(below(value.size(), random));
  } else if (value.is_object()) {
    value.erase(std::next(value.begin(), std::ptrdiff_t(below(value.size(), random))));
  } else {
    value = ordered_json::array({value});
  }
}

int64_t any_integer(std::mt19937& random) {
  return below(2, random) == 0 ? one_of(kIntegers, random) : int64_t(below(300, random));
}

// Sets a field that is not repeated, or adds to one that is.
void set_field(Message& message, const FieldDescriptor& field, std::mt19937& random) {
  const Reflection& r = *message.GetReflection();
  const auto put = [&](auto set, auto add, auto value) {
    field.is_repeated() ? (r.*add)(&message, &field, value) : (r.*set)(&message, &field, value);
  };
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return put(&Reflection::SetInt32, &Reflection::AddInt32, int32_t(any_integer(random)));
    case FieldDescriptor::CPPTYPE_INT64:
      return put(&Reflection::SetInt64, &Reflection::AddInt64, any_integer(random));
    case FieldDescriptor::CPPTYPE_UINT32:
      return put(&Reflection::SetUInt32, &Reflection::AddUInt32, uint32_t(any_integer(random)));
    case FieldDescriptor::CPPTYPE_UINT64:
      return put(&Reflection::SetUInt64, &Reflection::AddUInt64, uint64_t(any_integer(random)));
    case FieldDescriptor::CPPTYPE_FLOAT:
      return put(&Reflection::SetFloat, &Reflection::AddFloat, float(one_of(kNumbers, random)));
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return put(&Reflection::SetDouble, &Reflection::AddDouble, one_of(kNumbers, random));
    case FieldDescriptor::CPPTYPE_BOOL:
      return put(&Reflection::SetBool, &Reflection::AddBool, below(2, random) == 0);
    case FieldDescriptor::CPPTYPE_ENUM:
      return put(&Reflection::SetEnumValue, &Reflection::AddEnumValue, int(below(5, random)));
    case FieldDescriptor::CPPTYPE_STRING:
      return put(&Reflection::SetString, &Reflection::AddString, any_text(random));
    case FieldDescriptor::CPPTYPE_MESSAGE:
      field.is_repeated() ? r.AddMessage(&message, &field) : r.MutableMessage(&message, &field);
  }
}

void change_field(Message& message, std::mt19937& random) {
  const auto& descriptor = *message.GetDescriptor();
  if (descriptor.field_count() == 0) return;
  const FieldDescriptor& field =
      *descriptor.field(int(below(size_t(descriptor.field_count()), random)));
  const Reflection& r = *message.GetReflection();
  if (below(4, random) == 0) return r.ClearField(&message, &field);
  if (field.is_repeated() && r.FieldSize(message, &field) > 0 && below(3, random) == 0)
    return r.RemoveLast(&message, &field);
  set_field(message, field, random);
  if (field.cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) return;
  change_field(field.is_repeated()
                   ? *r.MutableRepeatedMessage(&message, &field, r.FieldSize(message, &field) - 1)
                   : *r.MutableMessage(&message, &field),
               random);
}

}  // namespace

std::string mutate_json(std::string_view text, std::mt19937& random) {
  ordered_json document = ordered_json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (document.is_discarded()) return std::string(text);
  std::vector<ordered_json*> values;
  collect(document, values);
  ordered_json& value = *one_of(values, random);
  switch (below(4, random)) {
    case 0:
      value = any_value(random);
      break;
    case 1:
      value = ordered_json(*one_of(values, random));  // a copy: it may hold `value`
      break;
    default:
      change_structure(value, random);
  }
  return document.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

std::string mutate_grpc_message(std::string_view bytes, std::mt19937& random) {
  const auto message = parse_grpc_message(bytes);
  if (message == nullptr) return std::string(bytes);
  for (size_t count = 1 + below(3, random); count > 0; --count) change_field(*message, random);
  return bytes.front() + message->SerializePartialAsString();
}

}  // namespace kivi::fuzz
