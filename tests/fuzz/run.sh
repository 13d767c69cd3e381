#!/usr/bin/env bash
# Run fuzz targets, each for a time, from their kept corpora; say how many executions there were.
#
# usage: bash tests/fuzz/run.sh [--build FOLDER] [--seconds N] [--log FILE] [--keep FOLDER] [NAME...]
#
# --build    where the targets were built (default: build/fuzz of this tree; preset fuzz)
# --seconds  of each target (default: SPINSHARD_FUZZ_SECONDS, or 10)
# --log      append one line a target: name, executions, seconds, coverage, inputs that reach all of it
# --keep     keep new inputs here, in one folder a target, and begin with those that are there
# NAME       the targets (default: all); fuzz_NAME.c has what it looks at
#
# A crash, a report of a sanitizer, an input that takes more than 60 s, more than 1 GiB in all, or one
# allocation above 64 MiB (inputs are at most 64 KiB) ends it with exit status 1; the input is left in
# the folder of the build as NAME-crash-*.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
build=$here/../../build/fuzz seconds=${SPINSHARD_FUZZ_SECONDS:-10} log=/dev/null keep="" names=()
while [ $# -gt 0 ]; do
    case $1 in
    --build) build=$2; shift ;;
    --seconds) seconds=$2; shift ;;
    --log) log=$2; shift ;;
    --keep) keep=$2; shift ;;
    -h | --help) sed -n '2,15s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    -*) echo "unknown option $1; see --help" >&2; exit 2 ;;
    *) names+=("$1") ;;
    esac
    shift
done
if [ ${#names[@]} -eq 0 ]; then
    for source in "$here"/fuzz_*.c; do name=${source##*/fuzz_}; names+=("${name%.c}"); done
fi

export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
export ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1:quarantine_size_mb=16 UBSAN_OPTIONS=print_stacktrace=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
for name in "${names[@]}"; do
    program=$(find "$build" -name "fuzz_$name" -type f -perm -u+x | head -1)
    [ -n "$program" ] || { echo "fuzz_$name is not built in $build" >&2; exit 2; }
    found=$work/$name
    [ -z "$keep" ] || found=$keep/$name
    mkdir -p "$found" "$here/corpus/$name"
    out=$work/$name.log
    "$program" -max_total_time="$seconds" -max_len=65536 -timeout=60 -rss_limit_mb=1024 -malloc_limit_mb=64 \
        -use_value_profile=1 -print_final_stats=1 -artifact_prefix="$build/$name-" \
        $([ -f "$here/$name.dict" ] && echo "-dict=$here/$name.dict") "$found" "$here/corpus/$name" >"$out" 2>&1
    status=$?
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$out" | tail -1)
    cover=$(grep -o 'cov: [0-9]* ft: [0-9]* corp: [0-9]*' "$out" | tail -1)
    line="$name: ${runs:-0} executions in $seconds s, ${cover:-no coverage}, exit status $status"
    echo "$line"
    [ "$log" = /dev/null ] || echo "$(date -u +%FT%TZ) $line" >>"$log"
    if [ $status -ne 0 ]; then
        failed=1
        tail -40 "$out"
    fi
done
exit $failed
