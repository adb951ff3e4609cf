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

# nothing_to_check WHY: says so. With CI=true it is a failure.
nothing_to_check() {
  [[ ${CI:-} == true ]] && fail "$* (CI=true: this check must run)"
  echo "not checked: $*"
}

# run_unittests PYTHON FOLDER PATTERN [OPTION...]: runs the tests of FOLDER's files PATTERN, and fails if
# there are none, which unittest does not.
run_unittests() {
  local log
  log=$(mktemp)
  "$1" -m unittest discover -v -s "$2" -p "$3" "${@:4}" 2>&1 | tee "$log"
  ! grep -q '^Ran 0 tests' "$log" || fail "no test of $2/$3 ${*:4} has been run"
  rm "$log"
}
