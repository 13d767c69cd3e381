#!/usr/bin/env bash
# The tests on the kernels of other CPUs: OpenBLAS and oneDNN are told to take those of older ones, so that no test hangs
# on what this machine has. Needs a built release preset with tests, and a CPU that has the instructions.
#
# usage: bash tests/kernels.sh [--short] [CTEST-ARGUMENT...]
#
# --short: Prescott with AVX2 alone, as tests/run.sh does. Without CTEST-ARGUMENTs all tests are run, on each of
# 4 kinds of BLAS kernels by oneDNN's default, on SkylakeX by each of 3 others, and on Haswell with AVX2, which is what
# CPUs without AVX-512 run. One line a set; logs in build/test-logs.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
logs=$root/build/test-logs
sets=(Prescott:DEFAULT Haswell:DEFAULT SkylakeX:DEFAULT Cooperlake:DEFAULT Haswell:AVX2 SkylakeX:AVX2 SkylakeX:AVX512_CORE
    SkylakeX:AVX512_CORE_BF16)
case ${1:-} in
--short) sets=(Prescott:AVX2); shift ;;
-h | --help) sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
esac
mkdir -p "$logs"
failed=0
for one in "${sets[@]}"; do
    log=$logs/kernels-${one/:/-}.log
    if (cd "$root" && OPENBLAS_CORETYPE=${one%:*} ONEDNN_MAX_CPU_ISA=${one#*:} ctest --preset release --no-tests=error "$@") >"$log" 2>&1; then
        result=passed
    else
        result="FAILED, see $log" failed=1
    fi
    printf '%-28s %s: %s\n' "$one" "$result" "$(grep -E 'tests passed' "$log" | tail -n 1)"
done
exit $failed
