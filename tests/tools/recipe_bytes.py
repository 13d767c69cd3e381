#!/usr/bin/env python3
"""Do two builds of the program make the same bytes? Each built-in recipe on a small trained model, one rank, few steps
of learning: sha256 of the rotations and of every file of the archives.

usage: recipe_bytes.py OLD NEW [RECIPE ...]        OLD and NEW are executables; recipes are those of this tree

A line a recipe: `equal`, or what differs. Recipes are given as files, so that a build whose built-in ones are others is
compared all the same; what a build refuses is said. Exit status 1 where something differs. A change that means to alter
bytes says so in its message: this tells of which recipes it did.
"""
import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile

import recipe_runs
from spin import TEXT, environment, settings, tars


def hashes(out):
    """{name: sha256} of the rotations and of what is in the archives; of the archives whole too."""
    found = {}
    for folder, _, files in os.walk(out):
        for name in files:
            if name == "rotations.safetensors" and "/run" not in folder:
                with open(os.path.join(folder, name), "rb") as f:
                    found[name] = hashlib.sha256(f.read()).hexdigest()
    for tar in tars(out):
        path = os.path.join(out, tar)
        with open(path, "rb") as f:
            found["tar"] = hashlib.sha256(f.read()).hexdigest()
        with tarfile.open(path) as t:
            for member in t.getmembers():
                if member.isfile():
                    found[os.path.basename(member.name)] = hashlib.sha256(t.extractfile(member).read()).hexdigest()
    return found


def run(program, name, model, text, out):
    """Hashes, or the line with which the program refuses."""
    words = ["quantize", "--recipe", os.path.join(recipe_runs.FOLDER, name + ".yaml"), "--model", model, "--out", out]
    if "calib:" in recipe_runs.recipe(name):
        words += ["--calib", text, *settings("calib.windows=6", *recipe_runs.phases(recipe_runs.recipe(name)))]
    r = subprocess.run([program, *words], env=environment(), capture_output=True, text=True, timeout=600, check=False)
    if r.returncode:
        return {}, r.stderr.strip().splitlines()[-1] if r.stderr.strip() else f"exit code {r.returncode}"
    return hashes(out), None


def compare(old, new):
    """What differs; nothing where all bytes are equal."""
    if old == new:
        return []
    names = [n for n in sorted({**old, **new}) if n != "tar" and old.get(n) != new.get(n)]
    return names or ["order or frame of the tar"]


def main(old, new, *names):
    worst = 0
    with tempfile.TemporaryDirectory() as folder:
        model, text = recipe_runs.widen(os.path.join(folder, "model")), os.path.join(folder, "text.txt")
        with open(TEXT, encoding="utf-8") as f, open(text, "w", encoding="utf-8") as to:
            to.write(f.read() * 3)  # a window of 2048
        for name in names or recipe_runs.names():
            (a, why_a), (b, why_b) = (run(p, name, model, text, os.path.join(folder, f"{k}-{name}"))
                                      for k, p in enumerate((old, new)))
            if why_a or why_b:
                print(f"{name:24} refused by {'both' if why_a and why_b else 'the old' if why_a else 'the new'}: {why_a or why_b}")
                worst = max(worst, not (why_a and why_b))
                continue
            other = compare(a, b)
            worst = max(worst, bool(other))
            print(f"{name:24} {'differ: ' + ', '.join(other) if other else 'equal'}"
                  f"{'' if 'rotations.safetensors' in a else ' (no rotations)'}", flush=True)
    return worst


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
