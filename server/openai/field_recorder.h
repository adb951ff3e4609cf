// SPDX-License-Identifier: Apache-2.0
// FieldRecorder notes which fields a reader of requests asks for, and what it takes for each. So
// /openapi.json says what the readers do, and cannot differ from them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace kivi {

enum class FieldKind {
  boolean,
  integer,   // within lowest and highest
  number,    // finite
  text,      // a string
  integers,  // a list
  texts,     // a string, or a list of strings
  other,     // judged by the caller
};

struct RecordedField {
  std::string name;
  FieldKind kind = FieldKind::other;
  int64_t lowest = 0, highest = 0;
};

class FieldRecorder {
 public:
  // A field that is asked for twice keeps its more precise kind.
  void note(RecordedField field) {
    for (RecordedField& known : fields_) {
      if (known.name != field.name) continue;
      if (known.kind == FieldKind::other) known = std::move(field);
      return;
    }
    fields_.push_back(std::move(field));
  }
  // The field is refused, whatever its value, or taken only with a value that changes nothing.
  void refuse(std::string_view name) {
    std::erase_if(fields_, [&](const RecordedField& field) { return field.name == name; });
    refused_.emplace_back(name);
  }
  bool refused(std::string_view name) const {
    for (const std::string& known : refused_)
      if (known == name) return true;
    return false;
  }
  const std::vector<RecordedField>& fields() const { return fields_; }

 private:
  std::vector<RecordedField> fields_;
  std::vector<std::string> refused_;
};

}  // namespace kivi
