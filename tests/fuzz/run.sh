#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Runs every fuzz target at once, each for SECONDS, and prints a line for each target:
#   run.sh SECONDS OUTDIR [CORES]
# Works in a bundle of scripts/fuzz-bundle, which needs nothing of its machine but bash. OUTDIR gets the
# logs, the corpora, and what failed (OUTDIR/findings/TARGET/). With more CORES than targets, some targets
# run more than once. Exits with 1 where a target has a finding.
set -u
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
(($# >= 2)) || { echo "usage: run.sh SECONDS OUTDIR [CORES]" >&2; exit 2; }
seconds=$1 cores=${3:-1}
mkdir -p "$2" && out=$(cd "$2" && pwd) || exit 2

# With its own loader and libraries. Address space randomization of newer kernels can end ASan's start.
program=("$here/lib/ld-linux-x86-64.so.2" --library-path "$here/lib" "$here/kivi_fuzz")
command -v setarch >/dev/null && setarch -R true 2>/dev/null && program=(setarch -R "${program[@]}")
export ASAN_OPTIONS=abort_on_error=0:allocator_may_return_null=1:detect_leaks=0 TMPDIR=$out

# What most is behind comes first, and so gets the cores that are left.
targets=(http_connection json grpc_message tokenizer_json)
for folder in "$here"/seeds/*/; do
  name=$(basename "$folder")
  [[ " ${targets[*]} " == *" $name "* ]] || targets+=("$name")
done

# One target, again and again until the time is over: libFuzzer ends at its first finding.
run() {
  local target=$1 number=$2 end=$((SECONDS + seconds)) try=0 dictionary=()
  [[ -f $here/seeds/$target.dict ]] && dictionary=("-dict=$here/seeds/$target.dict")
  mkdir -p "$out/findings/$target" "$out/corpus/$target" "$out/work/$target-$number"
  cd "$out/work/$target-$number" || return
  while ((SECONDS < end && try < 50)); do
    KIVI_FUZZ_TARGET=$target nice -n 19 "${program[@]}" "${dictionary[@]}" \
      -max_total_time=$((end - SECONDS)) -seed=$((1000 * number + ++try)) -rss_limit_mb=2048 \
      -timeout=20 -report_slow_units=20 -print_final_stats=1 -detect_leaks=0 -artifact_prefix="$out/findings/$target/" \
      "$out/corpus/$target" "$here/seeds/$target" >"$out/$target-$number-$try.log" 2>&1
  done
}

count=${#targets[@]}
((cores > count)) && count=$cores
for ((i = 0; i < count; i++)); do run "${targets[i % ${#targets[@]}]}" $((i / ${#targets[@]} + 1)) & done
wait

found=0
for target in "${targets[@]}"; do
  executions=$(cat "$out/$target"-*.log | awk '/^stat::number_of_executed_units:/ {n += $2} END {print n + 0}')
  coverage=$(cat "$out/$target"-*.log | grep -o ' cov: [0-9]*' | sort -t: -k2 -n | tail -1 | tr -dc 0-9)
  findings=$(find "$out/findings/$target" -type f | wc -l)
  ((findings == 0)) || found=1
  echo "$target: $executions executions, coverage ${coverage:-0}, $findings findings" \
    "$(find "$out/findings/$target" -type f -printf '%f ')"
done
rm -rf "$out/work"
exit $found
