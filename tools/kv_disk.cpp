// SPDX-License-Identifier: Apache-2.0
// `kivi clear-kv-disk DIR` empties a folder of --kv-disk.
#include <fmt/format.h>

#include <cstdio>

#include "tools/commands.h"

namespace kivi {

int run_kv_disk_clear(const Arguments& args) {
  if (args.size() != 1 || args[0].starts_with("-")) {
    const bool help = args == Arguments{"--help"} || args == Arguments{"-h"};
    fmt::print(help ? stdout : stderr,
               "Usage: kivi clear-kv-disk DIR\n\n"
               "Removes every page that a server with --kv-disk DIR has written, and the folder's "
               "secret.\nOther files stay. Stop the server that writes to the folder first.\n");
    return help ? 0 : kExitUsage;
  }
  const Result<int> removed = clear_kv_disk(args[0]);
  if (!removed.ok()) return report(removed.error());
  fmt::print("{}: {} files removed\n", args[0], *removed);
  return 0;
}

}  // namespace kivi
