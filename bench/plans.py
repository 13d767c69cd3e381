#!/usr/bin/env python3
"""Plans against facts: quantizes models with several recipes and says for each phase whether its memory lies within 10 % of the
plan that the run itself began with, and its time within the range that it printed.

usage: plans.py WORK MODEL ... [--ranks N] [--threads N] [--recipes A,B] [--program FILE] [--windows N] [--window N] [--repeat N]
                [--markdown]
MODEL: a folder. WORK: a folder to write to; outputs go when they were looked at. --repeat: of so many runs the fastest time of a
phase counts, and its largest memory, since what else a machine does only takes time. Exit code 1 where a phase lies outside.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
RANGE = "{objective: range, steps: %d, rows: 2048%s}"
# Recipes, each with few steps: what is compared is a step, and what stands around the steps.
RECIPES = {
    "rtn": ["weights.method=rtn", "learn=[]", "rotate.start=had"],
    "gptq-w4a16": [],
    "best-w4a16": ["learn=[%s]" % (RANGE % (8, ", weights: true"))],
    "scales-w4a4kv4": ["learn=[%s]" % (RANGE % (8, ""))],
    "best-w4a4kv4": ["learn=[%s]" % (RANGE % (8, ""))],
    "ce": ["learn=[{objective: ce, steps: 3, batch: 2, window: 64, lr_r1: 0.5}]", "weights.method=rtn"],
}
BASE = {"rtn": "best-w4a16", "ce": "range-w4a4kv4"}
WEIGHTS_ALONE = ("rtn", "gptq-w4a16", "best-w4a16")
MEMORY = 0.1  # the share of the plan that memory may be off by


def text_of(o, work):
    """A text long enough for the windows: the stories again and again."""
    path = os.path.join(work, "text-%d-%d.txt" % (o.windows, o.window))
    with open(os.path.join(ROOT, "tests", "data", "stories.txt")) as f:
        words = f.read().split()
    with open(path, "w") as f:
        for i in range((o.windows + 2) * o.window):
            f.write(words[i * 7919 % len(words)] + ("\n" if i % 16 == 15 else " "))
    return path


def run(o, model, recipe, work):
    """The `end` events of the phases of a run."""
    out = os.path.join(work, "out")
    shutil.rmtree(out, ignore_errors=True)
    command = [] if o.ranks == 1 else ["mpirun", "-n", str(o.ranks), "--bind-to", "none"]
    command += [o.program, "quantize", "--model", model, "--out", out, "--recipe", BASE.get(recipe, recipe), "--report", "off",
                "--calib", text_of(o, work), "--quiet"]
    blocks = [] if recipe in WEIGHTS_ALONE else ["rotate.r4_block=pow2"]  # orders of tiny models have no Hadamard matrix
    for key in blocks + ["calib.windows=%d" % o.windows, "calib.window=%d" % o.window] + RECIPES[recipe]:
        command += ["--set", key]
    done = subprocess.run(command, env=dict(os.environ, OMP_NUM_THREADS=str(o.threads)), capture_output=True, text=True)
    if done.returncode:
        sys.exit("%s\n%s%s" % (" ".join(command), done.stdout, done.stderr))
    with open(os.path.join(out, "events.jsonl")) as f:
        events = [json.loads(line) for line in f]
    shutil.rmtree(out)
    return [e for e in events if e["event"] == "end" and "planned_bytes" in e]


def judge(ends):
    """One phase, of all repetitions: plan, fact, and what lies outside."""
    seconds = min(e["seconds"] for e in ends)
    peak = max(e["peak_rss_bytes"] for e in ends)
    plan = ends[-1]
    outside = []
    if abs(peak / plan["planned_bytes"] - 1) > MEMORY:
        outside.append("memory %.2f of its plan" % (peak / plan["planned_bytes"]))
    if not plan["planned_seconds_low"] <= seconds <= plan["planned_seconds_high"]:
        outside.append("time")
    return [plan["phase"], "%.1f / %.1f" % (plan["planned_bytes"] / 2**20, peak / 2**20),
            "%.3f (%.3f to %.3f)" % (plan["planned_seconds"], plan["planned_seconds_low"], plan["planned_seconds_high"]),
            "%.3f, CPU %.3f" % (seconds, min(e["cpu_seconds"] for e in ends)), ", ".join(outside) or "inside"]


def show(o, cells):
    print("| " + " | ".join(cells) + " |" if o.markdown else "%-14s %-15s %-8s %15s %28s %22s  %s" % tuple(cells), flush=True)


def main():
    p = argparse.ArgumentParser(usage=__doc__.split("usage: ")[1].split("\nMODEL:")[0], description=__doc__)
    p.add_argument("work")
    p.add_argument("models", nargs="+")
    p.add_argument("--ranks", type=int, default=1)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--recipes", default=",".join(RECIPES))
    p.add_argument("--program", default=os.path.join(ROOT, "build", "release", "spinshard"))
    p.add_argument("--windows", type=int, default=4)
    p.add_argument("--window", type=int, default=256)
    p.add_argument("--repeat", type=int, default=1)
    p.add_argument("--markdown", action="store_true")
    o = p.parse_args()
    os.makedirs(o.work, exist_ok=True)
    show(o, ["model", "recipe", "phase", "MiB: plan/fact", "seconds planned (range)", "taken", "verdict"])
    phases = outside = 0
    for model in o.models:
        for recipe in o.recipes.split(","):
            runs = [run(o, os.path.abspath(model), recipe, o.work) for _ in range(o.repeat)]
            for ends in zip(*runs):
                row = judge(ends)
                phases += 1
                outside += row[-1] != "inside"
                show(o, [os.path.basename(os.path.normpath(model)), recipe] + row)
    print("%d phases, %d outside" % (phases, outside))
    return outside > 0


if __name__ == "__main__":
    sys.exit(main())
