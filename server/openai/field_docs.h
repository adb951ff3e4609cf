// SPDX-License-Identifier: Apache-2.0
// What /openapi.json says about fields of requests beside what their readers say: a sentence, and
// the shape of those that a reader judges by itself.
#pragma once

#include <string_view>

namespace kivi {

struct FieldDoc {
  std::string_view name;
  std::string_view text;    // a sentence without its full stop
  std::string_view schema;  // JSON; "" where the reader's own words suffice
};

// Returns null for a field that the table does not have. `place`: the path of the endpoint, whose
// own row for a name goes before the common one.
const FieldDoc* find_field_doc(std::string_view name, std::string_view place);

}  // namespace kivi
