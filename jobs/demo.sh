#!/usr/bin/env bash
# From a fresh Debian 12 machine to a quantized LLM: set up, build, fetch a model, quantize it on 2 MPI
# ranks into INT4 archives, verify them, and show size and perplexity before and after.
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

step() { printf '\n== %s\n' "$*"; }

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
group=64 online='[r3, r4]' online_title='R3 R4'
if [ -z "$model" ]; then
    if ! model=$(bash "$spinshard_root/jobs/demo/get_smollm2.sh"); then
        say "using the small model that is shipped with the tests instead: stories260K, 0.26 M parameters"
        model=$spinshard_root/tests/data/stories260K
        text=${text:-$spinshard_root/tests/data/stories.txt}
        group=channel
        : "${window:=128}"
        online='[r3]' online_title=R3 # its intermediate size, 172, has no Hadamard matrix here
    fi
fi
: "${text:=/usr/share/common-licenses/GPL-3}" "${window:=512}" "${limit:=14}"
printf 'model %s\ntext  %s, windows of %s tokens, at most %s\n' "$model" "$text" "$window" "$limit"

cores=$(nproc)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > 2 ? cores / 2 : 1))}
mkdir -p "$out"

# on2 COMMAND...: on 2 ranks of this machine; each may use any core.
on2() { mpirun --oversubscribe --bind-to none -n 2 "$spinshard" "$@"; }

# quantize NAME SETTING...: an archive in $out/NAME, made and verified on 2 ranks.
quantize() {
    local name=$1 set=() setting
    shift
    for setting in "weights.group=$group" weights.scale=search rotate.start=had "$@"; do set+=(--set "$setting"); done
    step "quantize and verify: $name"
    on2 quantize --quiet --model "$model" --out "$out/$name" --force "${set[@]}"
    on2 verify --quiet "$out/$name" --source "$model"
}

# evaluate NAME MODEL SETTING...: perplexity as it is, and with 4-bit activations and cache.
evaluate() {
    local name=$1 common setting
    common=(eval --model "$2" --text "$text" --window "$window" --limit "$limit" --json --quiet)
    shift 2
    for setting in "$@"; do common+=(--set "$setting"); done
    on2 "${common[@]}" >"$out/$name.json"
    on2 "${common[@]}" --set activations.bits=4 --set kv.bits=4 >"$out/$name-a4.json"
}

quantize plain rotate.r1=false rotate.r2=none
quantize rotated rotate.r1=true rotate.r2=layer
quantize online rotate.r1=true rotate.r2=layer "rotate.online=$online"

step "perplexity in full precision and of the three archives"
evaluate source "$model" rotate.r1=false rotate.r2=none
evaluate plain "$out/plain"
evaluate rotated "$out/rotated"
evaluate online "$out/online" "rotate.online=$online"

step "result"
python3 "$spinshard_root/jobs/demo/demo_table.py" "$out" "$model" "$online_title"
[ "$group" = channel ] || cat <<END
SmolLM2 comes here from a file of 4-bit weights (Q4_1), so 4 bits without rotation cost its weights less than
they would a model in 16 bit; with 4-bit activations rotation decides.
END
cat <<END

The archives are in $out. One of them as a folder that transformers and vLLM load:
    mkdir -p hf && tar -C hf -xf $out/rotated/*.tar
What is inside: $spinshard inspect $out/rotated
END
