// SPDX-License-Identifier: Apache-2.0
// Limits of control groups, in folders that look like theirs.
#include "server/memory_limit.h"

#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>

#include "tests/model/temporary_folder.h"

using namespace kivi;

namespace {

class Groups {
 public:
  void limit(const std::string& group, const std::string& text) {
    std::filesystem::create_directories(folder_.path() + "/" + group);
    folder_.write(group + (group.starts_with("memory") ? "/memory.limit_in_bytes" : "/memory.max"),
                  text);
  }
  std::optional<int64_t> read(const std::string& self) {
    folder_.write("self", self);
    return control_group_memory(folder_.path(), folder_.path() + "/self");
  }

 private:
  TemporaryFolder folder_;
};

}  // namespace

TEST_CASE("the smallest limit of a control group and of those around it counts") {
  Groups groups;
  CHECK_FALSE(groups.read("0::/\n"));
  groups.limit("a", "4096\n");
  groups.limit("a/b", "8192\n");
  CHECK(groups.read("0::/a/b\n") == 4096);
  groups.limit("a/b", "1024\n");
  CHECK(groups.read("0::/a/b\n") == 1024);
  CHECK(groups.read("0::/a\n") == 4096);
  CHECK(groups.read("0::/a/unknown\n") == 4096);
  CHECK_FALSE(groups.read("0::/other\n"));
}

TEST_CASE("a control group without a limit has none") {
  Groups groups;
  groups.limit("a", "max\n");
  CHECK_FALSE(groups.read("0::/a\n"));
  groups.limit("memory/a", "9223372036854771712\n");
  CHECK_FALSE(groups.read("5:cpu:/a\n4:memory:/a\n"));
}

TEST_CASE("a container that sees its own group as the root has its limit") {
  Groups groups;
  groups.limit("memory", "65536\n");
  CHECK(groups.read("3:cpu,cpuacct:/x\n4:hugetlb,memory:/docker/0123\n") == 65536);
}
