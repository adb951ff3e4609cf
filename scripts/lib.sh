# SPDX-License-Identifier: Apache-2.0
# Shared by the scripts: sourced, not run. Sets `root` and changes to it.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

say() { printf '\033[1m== %s\033[0m\n' "$*"; }
fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}
jobs() { nproc; }
