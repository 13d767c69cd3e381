#!/bin/bash
# The whole job on a shape of a large model with few layers, and its plan against what it took.
# usage: bench/scale.sh SHAPE WORK [KEY=VALUE ...] [-- FLAGS OF QUANTIZE]
# Keys and defaults: layers=1 vocab=0 (that of the shape) every=1 ranks=2 threads=1 mem= (its share of the node) recipe=best-w4a16
# windows=4 window=2048 steps=5 rows=4096 eval=2 program=build/release/spinshard make=build/release/tests/tool_model
# SHAPE: bench/shapes.py names them. What is in WORK is not made again, and a run that was interrupted goes on.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
[ $# -ge 2 ] || { sed -n '2,6s/^# //p' "$0"; exit 2; }
shape=$1 work=$2
shift 2
layers=1 vocab=0 every=1 ranks=2 threads=1 mem= recipe=best-w4a16 windows=4 window=2048 steps=5 rows=4096 eval=2
program=$root/build/release/spinshard make=$root/build/release/tests/tool_model
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    case $1 in
    layers=* | vocab=* | every=* | ranks=* | threads=* | mem=* | recipe=* | windows=* | window=* | steps=* | rows=* | eval=* | \
        program=* | make=*) declare "${1%%=*}=${1#*=}" ;;
    *) echo "scale.sh: no key: $1" >&2; exit 2 ;;
    esac
    shift
done
[ $# -eq 0 ] || shift
model=$work/$shape-$layers-$vocab-$every text=$root/tests/data/stories.txt
out=$work/out-$shape-$layers-$recipe-$ranks
mkdir -p "$work"
export OMP_NUM_THREADS=$threads
[ -f "$model/tokenizer.json" ] ||
    "$root/bench/shapes.py" --make "$make" --layers "$layers" --vocab "$vocab" --every "$every" "$shape" "$model"
run() { mpirun -n "$ranks" --bind-to none "$program" "$@"; }
keys=(--set "calib.windows=$windows" --set "calib.window=$window")
[ "$steps" = 0 ] || keys+=(--set "learn=[{objective: range, steps: $steps, rows: $rows, weights: true}]")
[ -z "$mem" ] || keys+=(--mem "$mem")
"$program" plan --measure --json --model "$model" --recipe "$recipe" --ranks-per-node 1 >"$work/rates.json"
[ -f "$out/manifest.json" ] || run quantize --model "$model" --out "$out" --recipe "$recipe" --calib "$text" "${keys[@]}" "$@"
run verify "$out" --source "$model" --quiet && echo "verified: $out"
[ "$eval" = 0 ] || run eval --model "$out" --text "$text" --window "$window" --limit "$eval" --quiet
"$root/bench/scale_table.py" "$model" "$out" "$work/rates.json"
