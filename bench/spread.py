#!/usr/bin/env python3
"""How much the random start of the rotations matters: perplexity over many seeds, for orthogonal and for Hadamard
starts, and of a learned one; and what each rotation adds: none, R1, R1+R2, +R3, +R4. With tasks, zero-shot accuracy too.
WORK/spread.svg shows every run as a point.

usage: spread.py --model FOLDER --text FILE --work FOLDER [--seeds 100] [--table-seeds 3] [--ranks 2]
                 [--program build/release/spinshard] [--recipe spread-w4a4kv4] [--kinds had,orthogonal]
                 [--learned rotations.safetensors]... [--tasks FILE[,FILE]...] [--weights 4|16] [--window 1024] [--limit WINDOWS] [--tail TOKENS] [--set KEY=VALUE]...

With --weights 4 (or what the recipe says, 2 to 8) each run quantizes an archive and evaluates it; the archive is
removed then. With 16 the weights stay as they are and only `eval` runs. Each result is a file in the work folder, so
the same command goes on after any interruption, and more seeds cost only the new ones. The settings are kept beside
them: another model, text or recipe wants another work folder.
"""
import argparse
import json
import math
import os
import shutil
import statistics
import sys

from resumable import PROGRAM, Refused, check_settings, keep, kept, own_kernels, run, settings, sha256

TABLE = (("none", ["rotate.r1=false", "rotate.r2=none", "rotate.online=[]"]),
         ("R1", ["rotate.r2=none", "rotate.online=[]"]),
         ("R1 R2", ["rotate.online=[]"]),
         ("R1 R2 R3", ["rotate.online=[r3]"]),
         ("R1 R2 R3 R4", ["rotate.online=[r3, r4]"]))


def refuses(code, message):
    """A size has no Hadamard matrix."""
    return code in (2, 3) and "Hadamard" in message


class Runs:
    def __init__(self, a):
        self.a, self.done, self.found = a, 0, 0
        os.makedirs(a.work, exist_ok=True)

    def spinshard(self, *words):
        return run(self.a.program, self.a.ranks, words, refuses, own_kernels())

    def evaluate(self, seed, pairs):
        a = self.a
        how = ["--recipe", a.recipe, "--seed", str(seed), *settings(a.set + pairs)]
        texts = ["--text", a.text, "--window", str(a.window), "--json", "--quiet"]
        for name in ("limit", "tail"):
            if getattr(a, name):
                texts += ["--" + name, str(getattr(a, name))]
        if a.tasks:
            texts += ["--tasks", a.tasks]
        if a.weights == 16:
            return json.loads(self.spinshard("eval", "--model", a.model, *how, *texts))
        out = os.path.join(a.work, "archive")
        self.spinshard("quantize", "--quiet", "--model", a.model, "--out", out, "--force", *how,
                       *settings([f"weights.bits={a.weights}"]))
        result = json.loads(self.spinshard("eval", "--model", out, *texts, *settings(self.sites())))
        shutil.rmtree(out)
        return result

    def sites(self):
        """Settings of activations and cache that were given: an archive's recipe has those of the recipe."""
        return [pair for pair in self.a.set if pair.startswith(("activations.", "kv."))]

    def perplexity(self, name, seed, pairs):
        """Of one run, from its file if it is there; a refusal is kept too."""
        path = os.path.join(self.a.work, f"{name}-{seed}.json")
        p = kept(path)
        if p is not None:
            self.found += 1
            return p
        try:
            got = self.evaluate(seed, pairs)
            (p,) = got["perplexity"]
            if got["tasks"]:
                p["acc"] = statistics.fmean(t["acc"] for t in got["tasks"])
        except Refused as e:
            p = {"refused": str(e)}
        keep(path, p)
        self.done += 1
        print(f"{name} seed {seed}: {p.get('ppl', p.get('refused'))}", file=sys.stderr, flush=True)
        return p

    def check_settings(self):
        a = self.a
        check_settings(a.work, {
            "model": os.path.realpath(a.model), "text_sha256": sha256(a.text), "recipe": a.recipe, "weights": a.weights,
            "window": a.window, "limit": a.limit, "tail": a.tail, "set": a.set,
            **({"tasks": [sha256(t) for t in a.tasks.split(",")]} if a.tasks else {})})


def spread_of(values):
    return {"n": len(values), "min": min(values), "median": statistics.median(values), "max": max(values),
            "mean": statistics.fmean(values), "sd": statistics.stdev(values) if len(values) > 1 else 0.0}


HEAD = f"{'n':>5}" + "".join(f"{k:>11}" for k in ("min", "median", "max", "mean", "sd"))
KEYS = {"ppl": "perplexity", "acc": "accuracy"}
STYLE = """<style>svg{background:#fff;color:#1b1b1b}text{fill:currentColor}.axis{fill:none;stroke:currentColor}circle{fill:#0060a8;fill-opacity:.6}
@media (prefers-color-scheme:dark){svg{background:#16181c;color:#e9eaec}circle{fill:#5fb8f2}}</style>
"""


def tell(kind, got, found):
    """A line for each number that the runs have; all of them into `found`."""
    if not any("ppl" in p for p in got):
        print(f"{kind:<28}  -   {got[0]['refused']}")
        return
    for key, name in KEYS.items():
        values = [p[key] for p in got if key in p]
        if not values:
            continue
        s = spread_of(values)
        print(f"{kind + ', ' + name:<28}{s['n']:>5}" + "".join(f"{s[k]:>11.3f}" for k in ("min", "median", "max", "mean", "sd")))
        if key == "ppl":
            found[kind] = s
        else:
            found[kind][key] = s
        found[kind].setdefault("runs", {})[key] = values


def random_starts(runs, a):
    print(f"\n{'random start':<28}{HEAD}")
    found = {}
    for kind in a.kinds.split(","):
        tell(kind, [runs.perplexity(kind, seed, [f"rotate.start={kind}"]) for seed in range(a.seeds)], found)
    for path in a.learned:
        name = "learned " + sha256(path)[:8]  # of a file of that content
        tell(name, [runs.perplexity(name.replace(" ", "-"), 0, [f"rotate.start={path}"])], found)
    return found


def added_rotations(runs, a):
    print(f"\n{'Hadamard start':<28}{HEAD}")
    found = {}
    for title, pairs in TABLE:
        seeds = range(a.table_seeds if title != "none" else 1)  # without rotations nothing is random
        tell(title, [runs.perplexity(title.replace(" ", ""), seed, pairs) for seed in seeds], found)
    return found


def ticks(low, high):
    """Multiples of 1, 2 or 5 times a power of ten, some five of them."""
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(k for k in (1, 2, 5, 10) if raw <= k * power * (1 + 1e-9))
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def strip(columns, key, left):
    """Points of every column over one axis; a column is as wide as its points need to stand apart."""
    values = [v for _, s in columns for v in s["runs"].get(key, [])]
    if not values:
        return ""
    low, high = min(values), max(values)
    room = (high - low) * 0.08 or abs(high) * 0.05 or 1
    low, high = low - room, high + room

    def at(v):
        return 240 - 200 * (v - low) / (high - low)

    out = [f'<text x="{left + 50}" y="22" font-weight="600">{KEYS[key]}</text>',
           f'<path class="axis" d="M{left + 50} 30V240H{left + 70 + 70 * len(columns)}"/>']
    for v in ticks(low, high):
        out.append(f'<text x="{left + 46}" y="{at(v) + 4:.1f}" text-anchor="end">{v:.4g}</text>')
    for i, (name, s) in enumerate(columns):
        x = left + 90 + 70 * i
        out.append(f'<text x="{x}" y="{256 + 14 * (i % 2)}" text-anchor="middle">{name}</text>')
        for n, v in enumerate(s["runs"].get(key, [])):
            out.append(f'<circle cx="{x + (n * 7 % 25) - 12}" cy="{at(v):.1f}" r="2.5">'
                       f"<title>{name}: {v:.5g}</title></circle>")
    return "\n".join(out)


def draw(path, result):
    columns = [*result["random_starts"].items(), *result["rotations"].items()]
    width = 110 + 70 * len(columns)
    parts = [strip(columns, key, i * width) for i, key in enumerate(KEYS)]
    total = width * (2 if parts[1] else 1)
    with open(path, "w", encoding="utf-8") as f:
        f.write(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} 280" font-family="sans-serif" font-size="11">\n'
                + STYLE + "\n".join(parts) + "\n</svg>\n")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True)
    p.add_argument("--text", required=True)
    p.add_argument("--work", required=True)
    p.add_argument("--program", default=PROGRAM)
    p.add_argument("--recipe", default="spread-w4a4kv4")
    p.add_argument("--kinds", default="had,orthogonal")
    p.add_argument("--learned", action="append", default=[])
    p.add_argument("--tasks")
    p.add_argument("--seeds", type=int, default=100)
    p.add_argument("--table-seeds", type=int, default=3)
    p.add_argument("--weights", type=int, default=4)
    p.add_argument("--window", type=int, default=1024)
    p.add_argument("--limit", type=int, default=0)
    p.add_argument("--tail", type=int, default=0)
    p.add_argument("--ranks", type=int, default=2)
    p.add_argument("--set", action="append", default=[])
    a = p.parse_args()
    runs = Runs(a)
    runs.check_settings()
    result = {"random_starts": random_starts(runs, a), "rotations": added_rotations(runs, a)}
    keep(os.path.join(a.work, "spread.json"), result)
    draw(os.path.join(a.work, "spread.svg"), result)
    print(f"\nperplexity, lower is better; {runs.done} runs made now, {runs.found} found in {a.work}")


if __name__ == "__main__":
    main()
