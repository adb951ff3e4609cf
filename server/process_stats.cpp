// SPDX-License-Identifier: Apache-2.0
#include "server/process_stats.h"

#include <sys/resource.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

namespace kivi {
namespace {

// Seconds since the epoch at which the machine was booted; 0 if unknown.
double boot_time() {
  std::ifstream in("/proc/stat");
  std::string key;
  while (in >> key) {
    if (key == "btime") {
      double seconds = 0;
      in >> seconds;
      return seconds;
    }
    in.ignore(1 << 20, '\n');
  }
  return 0;
}

int64_t count_open_fds() {
  int64_t count = 0;
  std::error_code error;
  for (std::filesystem::directory_iterator it("/proc/self/fd", error), end; !error && it != end;
       it.increment(error))
    ++count;
  return count > 0 ? count - 1 : 0;  // less the one that lists them
}

}  // namespace

ProcessStats read_process_stats() {
  ProcessStats stats;
  const double ticks = double(sysconf(_SC_CLK_TCK));
  std::ifstream in("/proc/self/stat");
  std::string line;
  if (std::getline(in, line)) {
    // The second field is the program's name in parentheses and may hold spaces. proc(5): state is
    // field 3; utime, stime are 14, 15; starttime 22; vsize 23; rss (pages) 24.
    std::istringstream fields(line.substr(line.rfind(')') + 1));
    std::string skip;
    double utime = 0, stime = 0, start = 0;
    int64_t pages = 0;
    for (int field = 3; field < 14; ++field) fields >> skip;
    fields >> utime >> stime;
    for (int field = 16; field < 22; ++field) fields >> skip;
    fields >> start >> stats.virtual_bytes >> pages;
    stats.cpu_seconds = (utime + stime) / ticks;
    stats.resident_bytes = pages * sysconf(_SC_PAGESIZE);
    if (const double boot = boot_time(); boot > 0) stats.start_time_seconds = boot + start / ticks;
  }
  in.close();  // or it would be counted
  stats.open_fds = count_open_fds();
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) stats.max_fds = int64_t(limit.rlim_cur);
  return stats;
}

}  // namespace kivi
