#!/usr/bin/env bash
# Set up what the tests need, build, and run all of them: in release all kinds, under AddressSanitizer and
# UndefinedBehaviorSanitizer the unit and rank tests and the main job; each fuzz target for some seconds.
#
# usage: bash tests/run.sh [--quick]
#
# --quick: release only, without the tests labelled slow. The last line counts all tests, in ctest's words.
# SPINSHARD_FUZZ_SECONDS: of each fuzz target, by default 10.
# Tests against foreign programs (transformers, tokenizers) run in a Python environment in the cache, or in
# the one that SPINSHARD_ORACLE_PYTHON names; without a registry of Python packages they say so and are skipped.
set -uo pipefail
# shellcheck source=jobs/demo/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/../jobs/demo/setup.sh"

quick=false
case ${1:-} in
"") ;;
--quick) quick=true ;;
-h | --help) sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
*) say "unknown option $1; see --help"; exit 2 ;;
esac

need_packages "${build_packages[@]}" "${test_packages[@]}" || exit 1
allow_root_mpi

if [ -z "${SPINSHARD_ORACLE_PYTHON:-}" ]; then
    [ -f "$spinshard_cache/python-oracle/packages.txt" ] ||
        say "making a Python environment for the oracles: torch, transformers, compressed-tensors (3 GB to fetch)"
    if python_env "$spinshard_cache/python-oracle" --requirement "$spinshard_root/tests/requirements.txt"; then
        export SPINSHARD_ORACLE_PYTHON=$spinshard_cache/python-oracle/bin/python
    else
        say "the registry of Python packages cannot be reached: tests against foreign programs are skipped"
    fi
fi
if [ -z "${SPINSHARD_SMOLLM2:-}" ]; then
    if model=$(bash "$spinshard_root/jobs/demo/get_smollm2.sh"); then
        export SPINSHARD_SMOLLM2=$model
    else
        say "tests on SmolLM2 are skipped"
    fi
fi

logs=$spinshard_root/build/test-logs
mkdir -p "$logs"
failed_tests=0 all_tests=0 skipped_tests=0 broken=()

# run_preset NAME CTEST-ARGUMENT...: build everything, run the tests, add up ctest's counts.
run_preset() {
    local preset=$1 log=$logs/$1-$((++runs)).log counts what=(all -- -DSPINSHARD_TESTS=ON -DSPINSHARD_WERROR=ON)
    [ "$preset" != fuzz ] || what=(fuzz_targets)
    shift
    printf '\n== %s: %s\n' "$preset" "${*:-all tests}"
    if ! build_preset "$preset" "${what[@]}"; then
        broken+=("$preset does not build")
        return
    fi
    (cd "$spinshard_root" && ctest --preset "$preset" --parallel "$(nproc)" --no-tests=error "$@") 2>&1 | tee "$log"
    counts=$(sed -n 's/.*tests passed, \([0-9]*\) tests\{0,1\} failed out of \([0-9]*\)$/\1 \2/p' "$log" | tail -1)
    if [ -z "$counts" ]; then
        broken+=("ctest gave no count for $preset")
        return
    fi
    failed_tests=$((failed_tests + ${counts% *})) all_tests=$((all_tests + ${counts#* }))
    skipped_tests=$((skipped_tests + $(grep -c '\*\*\*Skipped' "$log")))
}

runs=0
if $quick; then
    run_preset release --label-exclude slow
else
    run_preset release
    sources='format_check|include_table|headers_alone|call_circles|public_callers|tour_check'
    # Checks of the sources have no presets. What hangs on the kernels of this CPU shows on those of an old one;
    # tests/kernels.sh has them all.
    OPENBLAS_CORETYPE=Prescott ONEDNN_MAX_CPU_ISA=AVX2 \
        run_preset release --label-regex '^(unit|mpi)$' --exclude-regex "$sources"
    # Haswell's fp32 kernels round a row by its place (base/gemm_alike.c): what learns there keeps its bytes all the same.
    OPENBLAS_CORETYPE=Haswell ONEDNN_MAX_CPU_ISA=AVX2 \
        run_preset release --tests-regex '^(unit\.test_gemm|e2e\.test_learn_grid|e2e\.test_scales)$'
    for preset in asan ubsan; do
        run_preset "$preset" --label-regex '^(unit|mpi)$' --exclude-regex "$sources"
        run_preset "$preset" --tests-regex '^e2e\.test_main_job$'
    done
    if need_packages "${fuzz_packages[@]}"; then
        run_preset fuzz
    else
        say "the fuzz targets are skipped: they need clang"
    fi
fi

printf '\n'
for what in ${broken[@]+"${broken[@]}"}; do printf 'FAILED: %s\n' "$what"; done
[ "$skipped_tests" -eq 0 ] || printf '%d tests were skipped because what they need is absent\n' "$skipped_tests"
if [ "$all_tests" -eq 0 ]; then
    printf '0%% tests passed, no tests were run\n'
    exit 1
fi
printf '%d%% tests passed, %d tests failed out of %d\n' \
    $(((all_tests - failed_tests) * 100 / all_tests)) "$failed_tests" "$all_tests"
[ "$failed_tests" -eq 0 ] && [ ${#broken[@]} -eq 0 ]
