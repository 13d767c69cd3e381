#!/usr/bin/env python3
"""Perplexity of recipes on a model: one table, each figure the mean over seeds. Resumable.

usage: accuracy.py --program build/release/spinshard --model DIR --calib FILE --text NAME=FILE[:tail=TOKENS][:limit=WINDOWS]...
                   --work DIR [--rows FILE] [--seeds 0,1,2] [--ranks 2] [--threads 1] [--only ROW]...

A row is a name and settings of the recipe (JSON: {"row": {"recipe": NAME, "set": [KEY=VALUE, ...], "learn": bool}}).
Each row is run for each seed: `quantize` where it learns, `eval` of the weights at 16 bit with its rotations, and
`eval` of the archive where it makes one. Results are kept in DIR; a row that is there is not run again.
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time

import resumable

A4 = ["activations.bits=4", "kv.bits=4", "rotate.online=[r3, r4]"]
CE = "objective: ce, steps: 60, batch: 2, window: 1024, optimizer: adam, lr_r1: 0.1, lr_r2: 0.1"
ROWS = {
    "hadamard": {"set": A4},
    "published (sgd, detached)": {
        "set": A4 + ["learn=[{objective: ce, steps: 100, batch: 2, window: 1024, optimizer: sgd-published, "
                     "lr_r1: 1.5, lr_r2: 1.5, range_grad: detached}]"], "learn": True, "windows": 200},
    "ce detached": {"set": A4 + ["learn=[{%s, range_grad: detached}]" % CE], "learn": True, "windows": 120},
    "ce through": {"set": A4 + ["learn=[{%s, range_grad: through}]" % CE], "learn": True, "windows": 120},
    "pca": {"set": A4 + ["rotate.start=pca"], "learn": True},
    "range, R2 pca": {"recipe": "range-w4a4kv4", "set": ["rotate.start=had", "rotate.start_r2=pca"], "learn": True},
    "pca + range": {"recipe": "range-w4a4kv4", "learn": True},
    "pca + range + scales": {"recipe": "scales-w4a4kv4", "learn": True},
}


def run(a, args):
    command = [*resumable.launcher(a.ranks), a.program, *args]
    r = subprocess.run(command, env=resumable.own_kernels(a.threads), capture_output=True, text=True)
    if r.returncode:
        raise SystemExit(f"{' '.join(command)}\nexit code {r.returncode}\n{r.stderr[-3000:]}")
    return r.stdout


def perplexities(a, args):
    out = {}
    for spec in a.text:
        name, rest = spec.split("=", 1)
        path, *options = rest.split(":")
        flags = ["--" + o.split("=")[0] for o in options]
        more = [x for f, o in zip(flags, options) for x in (f, o.split("=")[1])]
        got = json.loads(run(a, ["eval", "--json", "--quiet", "--text", path, "--window", "1024", *more, *args]))
        out[name] = got["perplexity"][0]["ppl"]
    return out


def settings(row, seed):
    args = ["--seed", str(seed)]
    if "recipe" in row:
        args += ["--recipe", row["recipe"]]
    return args + resumable.settings(row.get("set", []))


def measure(a, name, row, seed):
    out = os.path.join(a.work, "out")
    shutil.rmtree(out, ignore_errors=True)
    result, args, start = {}, settings(row, seed), time.time()
    if row.get("learn"):
        calib = ["--set", "calib.window=1024", "--set", "calib.windows=%d" % row["windows"]] if "windows" in row else \
            [] if "recipe" in row else ["--set", "calib.window=1024", "--set", "calib.windows=4"]
        run(a, ["quantize", "--quiet", "--model", a.model, "--out", out, "--calib", a.calib, *args, *calib, "--set",
                "weights.group=channel", "--set", "weights.scale=search"])
    else:
        run(a, ["quantize", "--quiet", "--model", a.model, "--out", out, *args])
    result["seconds"] = time.time() - start
    rotations = ["--rotations", os.path.join(out, "rotations.safetensors")]
    result["16"] = perplexities(a, ["--model", a.model, *rotations, *settings(row, seed)])
    result["4"] = perplexities(a, ["--model", out])
    shutil.rmtree(out)
    return result


def table(results, rows, texts):
    head = [f"W{w} {t}" for w in ("16", "4") for t in texts]
    print("| | " + " | ".join(head) + " | seconds | seeds |\n|---" * 1 + "|---" * (len(head) + 2) + "|")
    for name in rows:
        seeds = [r for k, r in sorted(results.items()) if k.rsplit("#", 1)[0] == name]
        if not seeds:
            continue
        cells = []
        for w in ("16", "4"):
            for t in texts:
                v = [r[w][t] for r in seeds]
                cells.append(f"{statistics.mean(v):.2f} ({', '.join(f'{x:.2f}' for x in v)})")
        print(f"| {name} | " + " | ".join(cells) + f" | {statistics.mean(r['seconds'] for r in seeds):.0f} | {len(seeds)} |")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in ("--program", "--model", "--calib", "--work"):
        p.add_argument(flag, required=True)
    p.add_argument("--text", action="append", required=True)
    p.add_argument("--rows")
    p.add_argument("--seeds", default="0,1,2")
    p.add_argument("--ranks", type=int, default=2)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--only", action="append")
    a = p.parse_args()
    rows = json.load(open(a.rows)) if a.rows else ROWS
    os.makedirs(a.work, exist_ok=True)
    kept = os.path.join(a.work, "accuracy.json")
    results = resumable.kept(kept) or {}
    for name, row in rows.items():
        for seed in a.seeds.split(","):
            key = f"{name}#{seed}"
            if key in results or (a.only and name not in a.only):
                continue
            results[key] = measure(a, name, row, int(seed))
            resumable.keep(kept, results)
            print(key, json.dumps(results[key]), flush=True)
    table(results, rows, [t.split("=", 1)[0] for t in a.text])


if __name__ == "__main__":
    main()
