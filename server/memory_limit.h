// SPDX-License-Identifier: Apache-2.0
// The memory that a container, or a unit of systemd, gives this process.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace kivi {

// The smallest limit of this process's control group and of the groups around it (version 1 or 2),
// bytes. None where there is no limit. `root` and `self`: where the groups are mounted, and the
// file that names this process's group.
std::optional<int64_t> control_group_memory(const std::string& root = "/sys/fs/cgroup",
                                            const std::string& self = "/proc/self/cgroup");

}  // namespace kivi
