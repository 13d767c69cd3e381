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
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TABLE = (("none", ["rotate.r1=false", "rotate.r2=none", "rotate.online=[]"]),
         ("R1", ["rotate.r2=none", "rotate.online=[]"]),
         ("R1 R2", ["rotate.online=[]"]),
         ("R1 R2 R3", ["rotate.online=[r3]"]),
         ("R1 R2 R3 R4", ["rotate.online=[r3, r4]"]))


def settings(pairs):
    return [word for pair in pairs for word in ("--set", pair)]


class Refused(Exception):
    """A size has no Hadamard matrix: the message of the program."""


class Runs:
    def __init__(self, a):
        self.a, self.done, self.found = a, 0, 0
        os.makedirs(a.work, exist_ok=True)

    def spinshard(self, *words):
        """Exit 75, stopped at a commit, ends this script too: the same command goes on."""
        a = self.a
        env = {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS_")}
        launcher = ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", str(a.ranks)] if a.ranks > 1 else []
        r = subprocess.run([*launcher, a.program, *words], env=env, capture_output=True, text=True)
        errors = [line.split("error: ", 1)[1] for line in r.stderr.splitlines() if "error: " in line]
        if r.returncode in (2, 3) and errors and "Hadamard" in errors[0]:
            raise Refused(errors[0])
        if r.returncode:
            sys.stderr.write(r.stderr[-3000:])
            sys.exit(r.returncode)
        return r.stdout

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
        if not os.path.exists(path):
            try:
                (p,) = self.evaluate(seed, pairs)["perplexity"]
            except Refused as e:
                p = {"refused": str(e)}
            with open(path + ".new", "w") as f:
                json.dump(p, f)
            os.rename(path + ".new", path)
            self.done += 1
            print(f"{name} seed {seed}: {p.get('ppl', p.get('refused'))}", file=sys.stderr, flush=True)
        else:
            self.found += 1
        with open(path) as f:
            return json.load(f)

    def check_settings(self):
        """The results of a work folder are of one model, text and recipe."""
        a = self.a
        with open(a.text, "rb") as f:
            text = hashlib.sha256(f.read()).hexdigest()
        now = {"model": os.path.realpath(a.model), "text_sha256": text, "recipe": a.recipe, "weights": a.weights,
               "window": a.window, "limit": a.limit, "tail": a.tail, "set": a.set}
        path = os.path.join(a.work, "settings.json")
        if not os.path.exists(path):
            with open(path, "w") as f:
                json.dump(now, f, indent=1)
        with open(path) as f:
            then = json.load(f)
        differ = [k for k in now if now[k] != then.get(k)]
        if differ:
            sys.exit(f"{a.work} holds results of other settings ({', '.join(differ)}): choose another --work")


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
    p.add_argument("--program", default=os.path.join(ROOT, "build", "release", "spinshard"))
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
    with open(os.path.join(a.work, "spread.json"), "w") as f:
        json.dump(result, f, indent=1)
    print(f"\nperplexity, lower is better; {runs.done} runs made now, {runs.found} found in {a.work}")


if __name__ == "__main__":
    main()
