#!/usr/bin/env python3
"""How much the random start of the rotations matters: perplexity over many seeds, for orthogonal and for Hadamard
starts; and what each rotation adds: none, R1, R1+R2, +R3, +R4.

usage: spread.py --model FOLDER --text FILE --work FOLDER [--seeds 100] [--table-seeds 3] [--ranks 2]
                 [--program build/release/spinshard] [--recipe spread-w4a4kv4] [--kinds had,orthogonal]
                 [--weights 4|16] [--window 1024] [--limit WINDOWS] [--tail TOKENS] [--set KEY=VALUE]...

With --weights 4 (or what the recipe says, 2 to 8) each run quantizes an archive and evaluates it; the archive is
removed then. With 16 the weights stay as they are and only `eval` runs. Each result is a file in the work folder, so
the same command goes on after any interruption, and more seeds cost only the new ones. The settings are kept beside
them: another model, text or recipe wants another work folder.
"""
import argparse
import json
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
            (p,) = self.evaluate(seed, pairs)["perplexity"]
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
            "window": a.window, "limit": a.limit, "tail": a.tail, "set": a.set})


def spread_of(values):
    return {"n": len(values), "min": min(values), "median": statistics.median(values), "max": max(values),
            "mean": statistics.fmean(values), "sd": statistics.stdev(values) if len(values) > 1 else 0.0}


def print_spread(kind, values):
    s = spread_of(values)
    print(f"{kind:<14}{s['n']:>5}" + "".join(f"{s[k]:>11.3f}" for k in ("min", "median", "max", "mean", "sd")))
    return s


def random_starts(runs, a):
    print(f"\n{'random start':<14}{'n':>5}" + "".join(f"{k:>11}" for k in ("min", "median", "max", "mean", "sd")))
    found = {}
    for kind in a.kinds.split(","):
        got = [runs.perplexity(kind, seed, [f"rotate.start={kind}"]) for seed in range(a.seeds)]
        values = [p["ppl"] for p in got if "ppl" in p]
        if values:
            found[kind] = print_spread(kind, values)
        for p in got:
            if "refused" in p:
                print(f"{kind:<14}  -   {p['refused']}")
                break
    return found


def added_rotations(runs, a):
    print(f"\n{'Hadamard start':<14}{'n':>5}" + "".join(f"{k:>11}" for k in ("min", "median", "max", "mean", "sd")))
    found = {}
    for title, pairs in TABLE:
        seeds = range(a.table_seeds if title != "none" else 1)  # without rotations nothing is random
        got = [runs.perplexity(title.replace(" ", ""), seed, pairs) for seed in seeds]
        values = [p["ppl"] for p in got if "ppl" in p]
        if values:
            found[title] = print_spread(title, values)
        else:
            print(f"{title:<14}  -   {got[0]['refused']}")
    return found


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True)
    p.add_argument("--text", required=True)
    p.add_argument("--work", required=True)
    p.add_argument("--program", default=PROGRAM)
    p.add_argument("--recipe", default="spread-w4a4kv4")
    p.add_argument("--kinds", default="had,orthogonal")
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
    print(f"\nperplexity, lower is better; {runs.done} runs made now, {runs.found} found in {a.work}")


if __name__ == "__main__":
    main()
