// SPDX-License-Identifier: Apache-2.0
#include "server/memory_limit.h"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <string_view>

namespace kivi {
namespace {

// Version 1 writes a number near 2^63 for "no limit", rounded to pages.
constexpr int64_t kNoLimit = int64_t(1) << 60;

std::optional<int64_t> limit_in(const std::string& path) {
  std::ifstream file(path);
  std::string text;
  int64_t bytes = 0;
  if (!(file >> text)) return std::nullopt;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), bytes);
  if (error != std::errc() || *end != '\0' || bytes >= kNoLimit) return std::nullopt;  // "max"
  return bytes;
}

// The group of this process that a line of /proc/self/cgroup names: "0::/path" (version 2) or
// "4:memory:/path" (version 1, perhaps with other controllers).
struct Group {
  std::string folder, path;
  const char* file = nullptr;
};
std::optional<Group> group_of(std::string_view line, const std::string& root) {
  const size_t first = line.find(':'), second = line.find(':', first + 1);
  if (second == std::string_view::npos) return std::nullopt;
  const std::string_view controllers = line.substr(first + 1, second - first - 1);
  const std::string path(line.substr(second + 1));
  if (controllers.empty()) return Group{root, path, "memory.max"};
  if (("," + std::string(controllers) + ",").find(",memory,") == std::string::npos)
    return std::nullopt;
  return Group{root + "/memory", path, "memory.limit_in_bytes"};
}

}  // namespace

std::optional<int64_t> control_group_memory(const std::string& root, const std::string& self) {
  std::optional<int64_t> least;
  std::ifstream groups(self);
  for (std::string line; std::getline(groups, line);) {
    std::optional<Group> group = group_of(line, root);
    // A container may see its own group as the root, whatever the path says: each level is tried.
    while (group) {
      if (const auto limit = limit_in(group->folder + group->path + "/" + group->file))
        least = std::min(least.value_or(*limit), *limit);
      if (group->path.empty()) break;
      group->path.resize(group->path.rfind('/') == std::string::npos ? 0 : group->path.rfind('/'));
    }
  }
  return least;
}

}  // namespace kivi
