#!/usr/bin/env python3
"""Several recipes on one model in one table: perplexity on each text, zero-shot tasks if given, size, time, memory,
and what runs the result.

usage: compare.py --model FOLDER --calib FILE --text FILE[,limit=N][,tail=N]... --work FOLDER [--tasks FILE]...
                  [--window 1024] [--ranks 2] [--program build/release/spinshard] [--set KEY=VALUE]... [--keep]
                  [RECIPE...]

RECIPE is a name that `spinshard quantize --recipe` knows, or a file; without any, those of LIST below. The first row
is the model as it is. Each archive is made, measured and removed; --keep keeps them, and draws the
first four into WORK/report.html (`spinshard report --beside`). Each result is a file in the
work folder, so the same command goes on after any interruption, in the middle of a recipe too, and recipes that are
added cost only themselves. Other settings want another work folder; a recipe file that changed is run again. A recipe
that the model or the machine refuses has the reason in its row.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import time

from resumable import PROGRAM, ROOT, Refused, check_settings, keep, kept, run, settings, sha256

LIST = ("rtn-w4a16", "gptq-w4a16", "best-w4a16", "smoothquant-w8a8", "spinquant-nohad-w4a8", "best-w4a8", "quarot-w4a4kv4",
        "spinquant-had-w4a4kv4", "best-w4a4kv4")
REFUSALS = (2, 3, 6, 8)  # usage, input, does not fit, numerics: the row says why, the others go on


class Text:
    """FILE[,limit=N][,tail=N]"""

    def __init__(self, word):
        self.path, *more = word.split(",")
        self.name, self.words = os.path.splitext(os.path.basename(self.path))[0], []
        for option in more:
            key, _, value = option.partition("=")
            if key not in ("limit", "tail") or not value.isdigit():
                sys.exit(f"--text {word}: \"{option}\" is not limit=N or tail=N")
            self.words += ["--" + key, value]


class Compare:
    def __init__(self, a):
        self.a, self.texts, self.made, self.found = a, [Text(t) for t in a.text], 0, 0
        os.makedirs(a.work, exist_ok=True)

    def spinshard(self, *words):
        return run(self.a.program, self.a.ranks, words, lambda code, message: code in REFUSALS)

    def measure(self, model):
        """Perplexity by text, accuracy by task."""
        got = {"perplexity": {}, "tasks": {}}
        for t in self.texts:
            out = self.spinshard("eval", "--model", model, "--text", t.path, "--window", str(self.a.window), "--json", "--quiet",
                                 *t.words)
            (p,) = json.loads(out)["perplexity"]
            got["perplexity"][t.name] = p["ppl"]
        if self.a.tasks:
            words = [w for t in self.a.tasks for w in ("--tasks", t)]
            for t in json.loads(self.spinshard("eval", "--model", model, "--json", "--quiet", *words))["tasks"]:
                got["tasks"][os.path.splitext(os.path.basename(t["task"]))[0]] = t
        return got

    def quantize(self, recipe, out):
        """The archive, whole or from where an earlier start left it; what it cost, by its own log."""
        a = self.a
        if not os.path.exists(os.path.join(out, "manifest.json")):
            self.spinshard("quantize", "--quiet", "--model", a.model, "--out", out, "--recipe", recipe, "--calib", a.calib,
                           *settings(a.set))
        with open(os.path.join(out, "events.jsonl")) as f:
            ends = [e for e in map(json.loads, f) if e["event"] == "end"]
        with open(os.path.join(out, "manifest.json")) as f:
            manifest = json.load(f)
        return {"bytes": sum(t["bytes"] for t in manifest["tars"]), "seconds": sum(e["seconds"] for e in ends),
                "peak_rss_bytes": max(e["peak_rss_bytes"] for e in ends), "runs_in": runs_in(manifest["recipe"])}

    def make(self, recipe):
        if recipe is None:
            shards = [f for f in os.listdir(self.a.model) if f.endswith(".safetensors")]
            size = sum(os.path.getsize(os.path.join(self.a.model, f)) for f in shards)
            return {"bytes": size, **self.measure(self.a.model)}
        out = os.path.join(self.a.work, row_name(recipe) + ".archive")
        try:
            got = self.quantize(recipe, out)
            got.update(self.measure(out))
        except Refused as e:
            got = {"refused": str(e)}
        if not self.a.keep:
            shutil.rmtree(out, ignore_errors=True)
        return got

    def row(self, recipe):
        """One row, from its file if it is there and of the same recipe."""
        name = row_name(recipe)
        path, key = os.path.join(self.a.work, name + ".json"), self.recipe_key(recipe)
        got = kept(path)
        if got and got["recipe_sha256"] == key:
            self.found += 1
            return got
        if got:
            shutil.rmtree(os.path.join(self.a.work, name + ".archive"), ignore_errors=True)
        start = time.time()
        got = {"name": name, "recipe_sha256": key, **self.make(recipe)}
        keep(path, got)
        self.made += 1
        print(f"{name}: {got.get('refused') or 'done'} after {time.time() - start:.0f} s", file=sys.stderr, flush=True)
        return got

    @staticmethod
    def recipe_key(recipe):
        for path in (recipe, os.path.join(ROOT, "jobs", "recipes", f"{recipe}.yaml")):
            if recipe and os.path.isfile(path):
                return sha256(path)
        return ""  # a name that only the installed program knows

    def check_settings(self):
        a = self.a
        check_settings(a.work, {
            "model": os.path.realpath(a.model), "calib_sha256": sha256(a.calib), "window": a.window, "set": a.set,
            "texts": [[t.name, sha256(t.path), t.words] for t in self.texts], "tasks": [sha256(t) for t in a.tasks]})


def row_name(recipe):
    return os.path.splitext(os.path.basename(recipe))[0] if recipe else "source"


def runs_in(recipe):
    """Who does at run time what the recipe asks for."""
    low = any(recipe[part]["bits"] < 16 for part in ("activations", "kv"))
    if "r4" in recipe["rotate"]["online"] or (low and recipe["archive"].get("form") != "int-quantized"):
        return "eval"
    return "runtimes" if recipe["kv"]["bits"] >= 16 else "runtimes but KV"


def cells(compare, r):
    """The texts of one row, behind its name."""
    if "refused" in r:
        return [r["refused"]]
    got = [f"{r['perplexity'][t.name]:.3f}" for t in compare.texts]
    for t in r["tasks"].values():
        got.append(f"{100 * t['acc']:.1f}" + (f"/{100 * t['acc_norm']:.1f}" if t.get("acc_norm") is not None else ""))
    got.append(f"{r['bytes'] / 2 ** 20:.1f}")
    got += [f"{r['seconds']:.0f}", f"{r['peak_rss_bytes'] / 2 ** 20:.0f}", r["runs_in"]] if "seconds" in r else ["", "", ""]
    return got


def print_table(compare, rows):
    whole = next((r for r in rows if "refused" not in r), None)
    head = [t.name for t in compare.texts] + [f"{t} %" for t in (whole["tasks"] if whole else ())]
    table = [["recipe", *head, "MiB", "seconds", "MiB a rank", "runs in"]] + [[r["name"], *cells(compare, r)] for r in rows]
    full = [line for line in table if len(line) == len(table[0])]
    width = [max(len(line[i]) for line in full) for i in range(len(table[0]))]
    width[0] = max(len(line[0]) for line in table)
    for i, line in enumerate(table):
        print("| " + " | ".join(c.ljust(w) for c, w in zip(line, width)) + " |")
        if i == 0:
            print("|" + "|".join("-" * (w + 2) for w in width) + "|")


def draw(compare, rows):
    """A page of the archives that were kept, with what eval says of each."""
    outs = [os.path.join(compare.a.work, r["name"] + ".archive") for r in rows]
    outs = [out for out in outs if os.path.exists(os.path.join(out, "manifest.json"))][:4]
    if not outs:
        return
    page, words = os.path.join(compare.a.work, "report.html"), []
    for out in outs:
        text = compare.texts[0]
        evaluation = os.path.join(out, "eval.json")
        told = compare.spinshard("eval", "--model", out, "--json", "--quiet", "--window", str(compare.a.window), "--text",
                                 text.path, *text.words, "--against", compare.a.model)
        with open(evaluation, "w", encoding="utf-8") as f:
            f.write(told)
        words += ["--eval", evaluation] + (["--beside", out] if out != outs[0] else [])
    subprocess.run([compare.a.program, "report", outs[0], *words, "--html", page], check=True, stdout=sys.stderr)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True)
    p.add_argument("--calib", required=True)
    p.add_argument("--text", action="append", required=True)
    p.add_argument("--tasks", action="append", default=[])
    p.add_argument("--work", required=True)
    p.add_argument("--program", default=PROGRAM)
    p.add_argument("--window", type=int, default=1024)
    p.add_argument("--ranks", type=int, default=2)
    p.add_argument("--set", action="append", default=[])
    p.add_argument("--keep", action="store_true")
    p.add_argument("recipes", nargs="*", metavar="RECIPE")
    compare = Compare(p.parse_args())
    recipes = compare.a.recipes or list(LIST)
    names = [row_name(r) for r in [None, *recipes]]
    if len(set(names)) < len(names) or len({t.name for t in compare.texts}) < len(compare.texts):
        sys.exit("two recipes or two texts have one name: rename a file")
    compare.check_settings()
    rows = [compare.row(r) for r in (None, *recipes)]
    print_table(compare, rows)
    if compare.a.keep:
        draw(compare, rows)
    print(f"\nperplexity, lower is better; {compare.made} rows made now, {compare.found} found in {compare.a.work}")


if __name__ == "__main__":
    main()
