#!/usr/bin/env python3
"""A random search over recipe keys, flags, ranks and models: each draw is quantized, verified against its source and
evaluated. No crash, no hang, no refusal without one of the reasons that tests/tools/recipe_space.py knows, no archive
that verify fails. 100 draws; by hand

    SPINSHARD=build/release/spinshard tests/e2e/test_random_runs.py --draws 2000 [--seed N] [--log FILE]
"""
import argparse
import os
import random
import re
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import make_model  # noqa: E402
import recipe_space as space  # noqa: E402
from spin import STORIES, TEXT, Case, main, spin  # noqa: E402

ARGS = argparse.Namespace(draws=100, seed=1, log=None, workers=2)
KEYS = ("hidden", "intermediate", "heads", "kv_heads", "head_dim")
# (sizes, other words of make_model)
MODELS = [
    ((32, 64, 4, 2, 8), ["--layers", 2]),
    ((64, 100, 4, 4, 16), ["--layers", 1, "--dtype", "BF16", "--biases"]),
    ((48, 40, 2, 1, 24), ["--layers", 3, "--dtype", "F16", "--untied", "--shards", 3]),
    ((46, 86, 3, 1, 22), ["--layers", 1]),  # no Hadamard matrix of any of these
    ((40, 96, 2, 2, 30), ["--layers", 2, "--untied", "--biases"]),  # nor of heads of 30
]
STORIES_SIZES = dict(zip(KEYS, (64, 172, 8, 4, 8)))
# Reasons that no look at recipe and model foresees: (exit code, words, when)
MAY_HAPPEN = [
    (8, "too far apart", lambda r: r["weights.method"] == "gptaq"),
    (8, "not positive definite", lambda r: r["weights.method"] != "rtn" and r["weights.damp"] == 0),
]


def read_args():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--draws", type=int, default=ARGS.draws)
    p.add_argument("--seed", type=int, default=ARGS.seed)
    p.add_argument("--log", help="a line for each draw")
    p.add_argument("--workers", type=int, default=ARGS.workers, help="draws at a time")
    known, rest = p.parse_known_args(sys.argv[1:])
    sys.argv[1:] = rest
    return known


class RandomRuns(Case):
    def models(self):
        out = [(STORIES, STORIES_SIZES)]
        for i, (sizes, words) in enumerate(MODELS):
            m = dict(zip(KEYS, sizes))
            flags = [w for k in KEYS for w in ("--" + k.replace("_", "-"), m[k])]
            out.append((make_model.make(self.path(f"model{i}"), *flags, *words), m))
        return out

    def rotations_of(self, models):
        """A file of rotations for each model."""
        for i, (model, _) in enumerate(models):
            out = self.path(f"rotated{i}")
            self.good("quantize", "--model", model, "--out", out, "--set", "rotate.start=orthogonal")
        return [self.path(f"rotated{i}", "rotations.safetensors") for i in range(len(models))]

    def flags(self, rng, recipe):
        out = []
        if space.needs_text(recipe):
            out += rng.choice((["--calib", TEXT], ["--calib", TEXT], ["--calib-ids", self.ids]))
        out += rng.choice(([], [], ["--keep-run"], ["--mem", "2G"], ["--recompute", rng.choice(("on", "off", "auto"))],
                           ["--seed", rng.randrange(1 << 40)], ["--scratch", self.path("scratch")]))
        return out

    def run_draw(self, number):
        rng = random.Random(f"{ARGS.seed} {number}")
        at = rng.randrange(len(self.all))
        model, sizes = self.all[at]
        recipe, ranks = space.draw(rng), rng.choice((0, 0, 0, 2, 3))
        reasons = space.refusals(recipe, sizes)
        if recipe["rotate.start"] == space.FILE:
            recipe = {**recipe, "rotate.start": self.files[at]}
        words = [*space.words(recipe), *map(str, self.flags(rng, recipe))]
        out, start = self.path(f"out{number}"), time.monotonic()
        what = f"draw {number}: {os.path.basename(model)}, {ranks} ranks, {' '.join(words)}"
        wrong, told = "", ""
        for command in (["quantize", "--model", model, "--out", out, *words], ["verify", out, "--source", model],
                        ["eval", "--model", out, "--text", TEXT, "--window", 40, "--limit", 3, "--json"]):
            try:
                r = spin(*command, ranks=ranks, limit=300)
            except AssertionError as hang:
                wrong = str(hang)
                break
            if re.search(r"Sanitizer|runtime error:", r.err) or r.rc not in (0, 2, 3, 6, 7, 8):
                wrong = f"a crash, or a fault of the archive\n{r}"
            elif command[0] != "quantize" and r.rc:
                wrong = f"{command[0]} fails\n{r}"
            elif r.rc:
                told = (r.errors() or ["says nothing"])[0]
                known = reasons + [(c, w) for c, w, when in MAY_HAPPEN if when(recipe)]
                if len(r.errors()) != 1 or not any(c == r.rc and re.search(w, r.err) for c, w in known):
                    wrong = f"refused for none of {known}\n{r}"
            elif reasons and command[0] == "quantize":
                wrong = f"was to be refused for one of {reasons}\n{r}"
            if wrong or r.rc:
                break
        shutil.rmtree(out, ignore_errors=True)
        state = "WRONG" if wrong else "refused" if told else "good"
        if ARGS.log:
            with open(ARGS.log, "a", encoding="utf-8") as f:
                f.write(f"{state} {time.monotonic() - start:.1f} s {what} {told}\n")
        return state, f"{what}\n{wrong}" if wrong else ""

    def test_draws(self):
        self.all = self.models()
        self.files = self.rotations_of(self.all)
        self.ids = self.path("ids.txt")
        with open(self.ids, "w") as f:
            f.write(" ".join(str(3 + i * i % 500) for i in range(3000)))
        with ThreadPoolExecutor(ARGS.workers) as pool:
            got = list(pool.map(self.run_draw, range(ARGS.draws)))
        count = {s: sum(1 for x, _ in got if x == s) for s in ("good", "refused", "WRONG")}
        print(f"{ARGS.draws} draws from seed {ARGS.seed}: {count['good']} good, {count['refused']} refused for a reason")
        self.assertEqual(count["WRONG"], 0, "\n".join(w for _, w in got if w))
        self.assertGreater(count["good"], ARGS.draws // 3)


if __name__ == "__main__":
    ARGS = read_args()
    main()
