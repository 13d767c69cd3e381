#!/usr/bin/env bash
# From a fresh Debian 12 machine to a quantized LLM: set up, build, fetch a model, quantize it on 2 MPI
# ranks into INT4 archives, plain, with random and with learned rotations, verify them, and show what each costs.
#
# usage: bash jobs/demo.sh [--text FILE] [--window N] [--limit WINDOWS] [--model FOLDER] [--out FOLDER]
#
# Without --text the perplexity is that of the GNU GPL as Debian ships it: any English text does for a
# comparison. A second run takes no time to set up.
set -euo pipefail
# shellcheck source=jobs/demo/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/demo/setup.sh"

text="" window="" limit="" model="" out=$spinshard_root/build/demo
while [ $# -gt 0 ]; do
    case $1 in
    --text | --window | --limit | --model | --out)
        [ $# -ge 2 ] || { say "$1 needs a value"; exit 2; }
        declare "${1#--}=$2"
        shift 2
        ;;
    -h | --help) sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) say "unknown option $1; see --help"; exit 2 ;;
    esac
done

steps=8 at=0
# step WORDS: which step it is, of how many, with a bar.
step() {
    at=$((at + 1))
    local done=$((at * 24 / steps)) bar
    bar=$(printf '%*s' "$done" '' | tr ' ' '#')$(printf '%*s' $((24 - done)) '' | tr ' ' '.')
    printf '\n== step %d of %d [%s] %4d s  %s\n' "$at" "$steps" "$bar" "$SECONDS" "$*"
}

step "Debian packages"
need_packages "${build_packages[@]}"
step "build (build/release)"
# Without cmocka the tests cannot be configured; tests/run.sh installs it and turns them on.
tests=OFF
[ -f /usr/include/cmocka.h ] && tests=ON
build_preset release spinshard -- -DSPINSHARD_TESTS=$tests
spinshard=$spinshard_root/build/release/spinshard
allow_root_mpi

step "model"
group=64 online='[r3, r4]'
# What rotations and GPTQ are learned from: other texts of the same kind than the one that is measured, and of
# them those that every release of Debian ships alike.
calib=$out/calibration.txt windows=8 calib_window=512 learn='[{objective: range, steps: 300, rows: 4096}]'
mkdir -p "$out"
(cd /usr/share/common-licenses && cat GFDL-1.3 MPL-1.1 MPL-2.0 Apache-2.0 CC0-1.0) >"$calib"
if [ -z "$model" ]; then
    if ! model=$(bash "$spinshard_root/jobs/demo/get_smollm2.sh"); then
        say "using the small model that is shipped with the tests instead: stories260K, 0.26 M parameters"
        model=$spinshard_root/tests/data/stories260K
        text=${text:-$spinshard_root/tests/data/stories.txt}
        group=channel
        : "${window:=128}"
        online='[r3]' # its intermediate size, 172, has no Hadamard matrix here
        calib=$spinshard_root/tests/data/stories.txt windows=8 calib_window=128
    fi
fi
: "${text:=/usr/share/common-licenses/GPL-3}" "${window:=512}" "${limit:=10}"
printf 'model %s\ntext  %s, windows of %s tokens, at most %s\n' "$model" "$text" "$window" "$limit"

cores=$(nproc)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > 2 ? cores / 2 : 1))}

# Ranks of one machine meet in memory. Open MPI 5 tries TCP all the same and warns at each start where it finds no way.
export OMPI_MCA_btl=${OMPI_MCA_btl-^tcp}

# on2 COMMAND...: on 2 ranks of this machine; each may use any core.
on2() { mpirun --oversubscribe --bind-to none -n 2 "$spinshard" "$@"; }

# quantize NAME SETTING...: an archive in $out/NAME, made and verified on 2 ranks.
quantize() {
    local name=$1 set=() setting
    shift
    for setting in "weights.group=$group" weights.scale=search "$@"; do set+=(--set "$setting"); done
    [ "$name" != learned ] || set+=(--calib "$calib") # the others use no text
    on2 quantize --model "$model" --out "$out/$name" --force "${set[@]}"
    on2 verify --quiet "$out/$name" --source "$model"
}

# evaluate NAME MODEL SETTING...: perplexity as it is, and with 4-bit activations and cache. The latter in fp64: where
# an activation lies between two codes the last bit of a sum decides, and what follows from that multiplies from layer
# to layer, so that in bf16 and fp32 the kernels of another CPU or library give a figure that is 5 % off.
evaluate() {
    local name=$1 common setting
    common=(eval --model "$2" --text "$text" --window "$window" --limit "$limit" --json --quiet)
    shift 2
    for setting in "$@"; do common+=(--set "$setting"); done
    on2 "${common[@]}" --set activations.bits=16 --set kv.bits=16 >"$out/$name.json"
    on2 "${common[@]}" --dtype fp64 --set activations.bits=4 --set kv.bits=4 >"$out/$name-a4.json"
}

step "plain: weights rounded to nearest, nothing rotated; verify"
quantize plain rotate.r1=false rotate.r2=none
step "random Hadamard rotations, rounded to nearest; verify"
quantize hadamard rotate.start=had rotate.r1=true rotate.r2=layer "rotate.online=$online"
step "learned: R1, R2 by Cayley steps over 2 ranks, scales, GPTQ; verify"
quantize learned rotate.start=pca rotate.r1=true rotate.r2=layer "rotate.online=$online" scale.start=closed \
    "scale.pairs=[norm, ud]" activations.bits=4 kv.bits=4 "learn=$learn" weights.method=gptq \
    "calib.windows=$windows" "calib.window=$calib_window"

step "perplexity in full precision and of the three archives, W4A16 and W4A4KV4"
evaluate source "$model" rotate.r1=false rotate.r2=none
evaluate plain "$out/plain"
evaluate hadamard "$out/hadamard" "rotate.online=$online"
evaluate learned "$out/learned" "rotate.online=$online"

step "result"
python3 "$spinshard_root/jobs/demo/demo_table.py" "$out" "$model"
[ "$group" = channel ] || cat <<END
SmolLM2 comes here from a file of 4-bit weights (Q4_1), so 4 bits without rotation cost its weights less than
they would a model in 16 bit; with 4-bit activations rotations decide. What is learned follows the last bit of each
sum: two sets of libraries, on one machine, gave last figures 4 % apart here and 5 % apart, the other way round, on
another text. The others stayed within 0.2 %.
END
cat <<END

The archives are in $out; what is inside: $spinshard inspect $out/learned
Next, on a model of your own, for vLLM and transformers (FOLDER as Hugging Face gives it, any UTF-8 text):
    mpirun -n 2 --bind-to none $spinshard quantize --recipe best-w4a16 --model FOLDER --calib TEXT --out OUT
END
