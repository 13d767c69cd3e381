#!/bin/bash
# The whole job on a shape of a large model with few layers, and its plan against what it took.
# usage: bench/scale.sh SHAPE WORK [KEY=VALUE ...] [-- FLAGS OF QUANTIZE]
# Keys and defaults: layers=1 vocab=0 (that of the shape) every=1 ranks=2 threads=1 mem= (its share of the node) recipe=best-w4a16
# windows=4 window=2048 steps=5 rows=4096 eval=2 text= (made) program=build/release/spinshard make=build/release/tests/tool_model
# SHAPE: bench/shapes.py names them. What is in WORK is not made again, and a run that was interrupted goes on.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
[ $# -ge 2 ] || { sed -n '2,6s/^# //p' "$0"; exit 2; }
shape=$1 work=$2
shift 2
layers=1 vocab=0 every=1 ranks=2 threads=1 mem= recipe=best-w4a16 windows=4 window=2048 steps=5 rows=4096 eval=2 text=
program=$root/build/release/spinshard make=$root/build/release/tests/tool_model
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    case $1 in
    layers=* | vocab=* | every=* | ranks=* | threads=* | mem=* | recipe=* | windows=* | window=* | steps=* | rows=* | eval=* | text=* | \
        program=* | make=*) declare "${1%%=*}=${1#*=}" ;;
    *) echo "scale.sh: no key: $1" >&2; exit 2 ;;
    esac
    shift
done
[ $# -eq 0 ] || shift
model=$work/$shape-$layers-$vocab-$every
out=$work/out-$shape-$layers-$recipe-$ranks
mkdir -p "$work"
export OMP_NUM_THREADS=$threads
[ -f "$model/tokenizer.json" ] ||
    "$root/bench/shapes.py" --make "$make" --layers "$layers" --vocab "$vocab" --every "$every" "$shape" "$model"
# A text that is long enough for the windows: the stories again and again, their words in another order each time, so that no two
# windows are alike. The words do not matter to a model of random weights; their spread over the vocabulary does.
if [ -z "$text" ]; then
    text=$work/text-$((windows + eval))-$window.txt
    [ -f "$text" ] || awk -v tokens=$(((windows + eval + 1) * window)) -v seed=1 '
        { for (i = 1; i <= NF; i++) word[n++] = $i }
        END {
            srand(seed)
            for (k = 0; k < tokens; k++) printf "%s%s", word[int(rand() * n)], k % 16 == 15 ? "\n" : " "
        }' "$root/tests/data/stories.txt" >"$text"
fi
run() { mpirun -n "$ranks" --bind-to none "$program" "$@"; }
keys=(--set "calib.windows=$windows" --set "calib.window=$window")
[ "$steps" = 0 ] || keys+=(--set "learn=[{objective: range, steps: $steps, rows: $rows, weights: true}]")
[ -z "$mem" ] || keys+=(--mem "$mem")
"$program" plan --measure --json --model "$model" --recipe "$recipe" --ranks-per-node 1 >"$work/rates.json"
[ -f "$out/manifest.json" ] || run quantize --model "$model" --out "$out" --recipe "$recipe" --calib "$text" "${keys[@]}" "$@"
run verify "$out" --source "$model" --quiet && echo "verified: $out"
[ "$eval" = 0 ] || run eval --model "$out" --text "$text" --window "$window" --limit "$eval" --quiet
"$root/bench/scale_table.py" "$model" "$out" "$work/rates.json"
