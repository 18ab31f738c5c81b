#!/usr/bin/env bash
# Searches for inputs that reach new code, with libFuzzer and the stable compiler:
#
#   scripts/fuzz.sh BUILD_DIR SECONDS [TARGET..]
#
# What is found is collected in BUILD_DIR/corpus; at the end, those inputs that reach what no kept
# one does are added to tests/fuzz/corpus. An input that fails lies in BUILD_DIR/failed, and the
# script ends with 1: it belongs into the kept corpus when the fault has a test of its own.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dir=$1
seconds=$2
shift 2
kept=$root/tests/fuzz/corpus
targets=("$@")
[[ $# -gt 0 ]] || mapfile -t targets < <(ls "$kept")
host=$(rustc -vV | sed -n 's/^host: //p')

flags=(-Cpasses=sancov-module)
for option in level=4 inline-8bit-counters pc-table trace-compares; do
    flags+=("-Cllvm-args=-sanitizer-coverage-$option")
done
# With --target the flags are not for build scripts, which do not link libFuzzer.
(
    cd "$root"
    export CARGO_TARGET_DIR=$dir RUSTFLAGS="${RUSTFLAGS:-} ${flags[*]}"
    cargo build ${CI:+--locked} --profile fuzz --target "$host" -p dmce-fuzz --features libfuzzer
)

mkdir -p "$dir/failed"
status=0
for target in "${targets[@]}"; do
    if [[ ! -d $kept/$target ]]; then
        echo "$target is no target, these are: $(ls -m "$kept")" >&2
        exit 2
    fi
    found=$dir/corpus/$target
    log=$dir/$target.log
    mkdir -p "$found"
    export DMCE_FUZZ_TARGET=$target
    run=("$dir/$host/fuzz/dmce-fuzz" -timeout=10 -max_len=4096 "-artifact_prefix=$dir/failed/$target-")
    if "${run[@]}" "-max_total_time=$seconds" -print_final_stats=1 "$found" "$kept/$target" \
        >"$log" 2>&1; then
        # By code that is reached, not by how often: a corpus is for clones to carry.
        "${run[@]}" -set_cover_merge=1 -use_counters=0 "$kept/$target" "$found" >>"$log" 2>&1
    else
        status=1
        echo "$target failed: the input is in $dir/failed, the trace in $log" >&2
    fi
    executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log" | head -n 1)
    inputs=$(find "$kept/$target" -type f | wc -l)
    printf '%-14s %10d executions, %4d inputs kept\n' "$target" "${executions:-0}" "$inputs"
done
exit "$status"
