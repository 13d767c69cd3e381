#!/usr/bin/env python3
"""Learning at the sizes the product is for: the loss of `range` on held-out rows, for generated models of several hidden
sizes and numbers of outlier channels, from each start, with the default rates; beside it a long careful run (a constant
small angle, five times the steps), and the share of its gain that the default reaches. One table.

usage: steps.py --program build/release/spinshard --make build/release/tests/tool_model --work DIR
                [--hidden 256,576,1024] [--outliers 0,3,30] [--start had,pca] [--steps 100] [--rows 4096] [--no-careful]
                [--learn 'KEY: VALUE, ...'] [--set KEY=VALUE]...
--learn changes the phase whose result is measured, not the careful one.
Models are noise with the statistics of trained ones (tests/tools/tool_model.c). A row that is in DIR is not run again.
"""
import argparse
import json
import os
import shutil
import subprocess

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DATA = os.path.join(ROOT, "tests", "data")
CAREFUL_ANGLE = 0.02


def make(a, hidden, outliers):
    out = os.path.join(a.work, f"h{hidden}-{outliers}")
    if not os.path.isfile(os.path.join(out, "tokenizer.json")):
        heads = hidden // 64 if hidden < 4096 else hidden // 128
        subprocess.run([a.make, out, f"hidden={hidden}", f"intermediate={hidden * 11 // 4 // 64 * 64}", "layers=2",
                        f"heads={heads}", f"kv_heads={heads}", f"outliers={outliers}"], check=True)
        for name in ("tokenizer_config.json", "tokenizer.json"):
            shutil.copyfile(os.path.join(DATA, "stories260K", name), os.path.join(out, name))
    return out


def learn(a, model, name, start, phase):
    out = os.path.join(a.work, "out-" + name)
    events = os.path.join(a.work, name + ".jsonl")
    if not os.path.isfile(events):
        shutil.rmtree(out, ignore_errors=True)
        words = [a.program, "quantize", "--quiet", "--model", model, "--out", out, "--calib",
                 os.path.join(DATA, "stories.txt")]
        for s in ["calib.windows=6", "calib.window=256", f"rotate.start={start}", "activations.bits=4", "kv.bits=4",
                  "rotate.online=[r3]", "weights.group=channel", "learn=[{objective: range, %s}]" % phase, *a.set]:
            words += ["--set", s]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        shutil.move(os.path.join(out, "events.jsonl"), events)
        shutil.rmtree(out)
    with open(events) as f:
        found = [json.loads(line) for line in f if line.startswith("{")]
    return [e for e in found if e["event"] == "held"]


def row(a, hidden, outliers, start):
    model, name = make(a, hidden, outliers), f"h{hidden}-{outliers}-{start}"
    held = learn(a, model, name, start, f"steps: {a.steps}, rows: {a.rows}" + (", " + a.learn if a.learn else ""))
    first, kept = held[0]["held"], [e["held"] for e in held if e["r1"] != "taken back"]
    text = "%6d %4d %4s %8.2f %8.2f %8.2f %6.3f %5d" % (hidden, outliers, start, first, held[1]["held"], kept[-1], max(kept) / first,
                                                        sum(e["r1"] == "taken back" for e in held))
    if not a.no_careful:
        careful = learn(a, model, name + "-careful", start,
                        f"steps: {5 * a.steps}, rows: {a.rows}, schedule: constant, lr_r1: {CAREFUL_ANGLE}")
        best = min(e["held"] for e in careful)
        text += " %8.2f %5.0f %%" % (best, 100 * (first - kept[-1]) / (first - best))
    print(text, flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("program", "make", "work"):
        p.add_argument("--" + name, required=True)
    p.add_argument("--hidden", default="256,576,1024")
    p.add_argument("--outliers", default="0,3,30")
    p.add_argument("--start", default="had,pca")
    p.add_argument("--steps", type=int, default=100)
    p.add_argument("--rows", type=int, default=4096)
    p.add_argument("--learn", default="")
    p.add_argument("--no-careful", action="store_true")
    p.add_argument("--set", action="append", default=[])
    a = p.parse_args()
    os.makedirs(a.work, exist_ok=True)
    print("hidden outl from    start   step 1      end  worst  back  careful  share")
    for hidden in a.hidden.split(","):
        for outliers in a.outliers.split(","):
            for start in a.start.split(","):
                row(a, int(hidden), int(outliers), start)


if __name__ == "__main__":
    main()
