// SPDX-License-Identifier: Apache-2.0
#include "engine/grammar/json_formats.h"

#include <fmt/format.h>

#include <functional>
#include <map>

namespace kivi::grammar {
namespace {

// Years from 1000 to 2999; February has its 29th in leap years alone.
std::string date() {
  const std::string year = "[12][0-9]{3}";
  const std::string leap = "(?:[12][0-9](?:0[48]|[2468][048]|[13579][26])|(?:12|16|20|24|28)00)";
  return "(?:" + year +
         "-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|"
         "02-(?:0[1-9]|1[0-9]|2[0-8]))|" +
         leap + "-02-29)";
}

std::string time() {
  const std::string hours = "(?:[01][0-9]|2[0-3])", minutes = "[0-5][0-9]";
  return hours + ":" + minutes + ":" + minutes + "(?:\\.[0-9]{1,9})?(?:Z|[+-]" + hours + ":" +
         minutes + ")";
}

std::string hostname() {
  const std::string label = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,30}[A-Za-z0-9])?";
  return label + "(?:\\." + label + "){0,4}";
}

std::string ipv4() {
  const std::string byte = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])";
  return byte + "(?:\\." + byte + "){3}";
}

std::string ipv6() {
  const std::string group = "[0-9A-Fa-f]{1,4}";
  std::string all = "(?:" + group + ":){7}" + group;
  // `before` groups, "::", at most 7 - before groups.
  for (int before = 0; before <= 7; ++before) {
    std::string part;
    if (before > 0)
      part += before == 1 ? group : fmt::format("{0}(?::{0}){{{1}}}", group, before - 1);
    part += "::";
    if (const int after = 7 - before; after > 0)
      part += "(?:" + group +
              (after > 1 ? "(?::" + group + "){0," + std::to_string(after - 1) + "}" : "") + ")?";
    all += "|" + part;
  }
  return "(?:" + all + ")";
}

std::string uri() {
  const std::string plain = "[A-Za-z0-9._~!$&'()*+,;=:@-]";
  return "[A-Za-z][A-Za-z0-9+.-]*://" + hostname() + "(?::[0-9]{1,5})?(?:/" + plain +
         "*)*(?:\\?(?:" + plain + "|[/?])*)?(?:#(?:" + plain + "|[/?])*)?";
}

std::string duration() {
  const std::string clock = "T(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S)";
  const std::string days = "[0-9]+D", months = "[0-9]+M(?:" + days + ")?",
                    years = "[0-9]+Y(?:" + months + ")?";
  return "P(?:(?:" + days + "|" + months + "|" + years + ")(?:" + clock + ")?|" + clock +
         "|[0-9]+W)";
}

const std::map<std::string, std::function<std::string()>, std::less<>>& table() {
  static const std::map<std::string, std::function<std::string()>, std::less<>> formats = {
      {"date", date},
      {"time", time},
      {"date-time", [] { return date() + "T" + time(); }},
      {"duration", duration},
      {"email",
       [] { return "[A-Za-z0-9_+-]+(?:\\.[A-Za-z0-9_+-]+)*@" + hostname() + "\\.[A-Za-z]{2,10}"; }},
      {"hostname", hostname},
      {"ipv4", ipv4},
      {"ipv6", ipv6},
      {"uri", uri},
      {"uuid",
       [] {
         return std::string(
             "[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}");
       }},
  };
  return formats;
}

}  // namespace

std::string format_pattern(std::string_view format) {
  const auto it = table().find(format);
  return it == table().end() ? "" : it->second();
}

std::string format_names() {
  std::string names;
  for (const auto& [name, unused] : table()) names += (names.empty() ? "" : ", ") + name;
  return names;
}

}  // namespace kivi::grammar
