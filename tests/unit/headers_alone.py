#!/usr/bin/env python3
"""Each header compiles alone, with the flags of the sources beside it. Not so
headers that demand a definition (#error).

Needs compile_commands.json of the build whose program SPINSHARD names; skips (77) without.
"""
import glob
import json
import os
import shlex
import subprocess
import sys

ROOT = os.environ.get("SPINSHARD_SOURCE") or os.path.dirname(
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def flags_of(command):
    """The compile flags without the source, the output and the optimisation."""
    words, out, skip = shlex.split(command["command"]), [], False
    for w in words:
        if skip or w in ("-c", command["file"]):
            skip = False
        elif w == "-o":
            skip = True
        elif not w.startswith("-O"):
            out.append(w)
    return out


def main():
    build = os.path.dirname(os.environ.get("SPINSHARD", ""))
    database = os.path.join(build, "compile_commands.json")
    if not build or not os.path.isfile(database):
        print("skipped: no compile_commands.json beside the program")
        return 77
    flags = {}
    with open(database, encoding="utf-8") as f:
        for command in json.load(f):
            folder = os.path.relpath(os.path.dirname(command["file"]), ROOT)
            flags.setdefault(folder, (command["directory"], flags_of(command)))
    failed = checked = 0
    for header in sorted(glob.glob(os.path.join(ROOT, "*", "**", "*.h"), recursive=True)):
        name = os.path.relpath(header, ROOT)
        if name.startswith("build"):
            continue
        with open(header, encoding="utf-8") as f:
            if "#error" in f.read():
                continue
        folder = os.path.dirname(name)
        if folder not in flags:  # a folder of headers only
            folder = "jobs" if "jobs" in flags else next(iter(flags))
        where, words = flags[folder]
        got = subprocess.run(words + ["-fsyntax-only", "-x", "c", "-"], cwd=where, text=True,
                             input=f'#include "{name}"\n', capture_output=True)
        checked += 1
        if got.returncode:
            failed += 1
            print(f"{name} does not compile alone:\n{got.stderr}")
    print(f"{checked} headers, {failed} do not compile alone")
    return 1 if failed or not checked else 0


if __name__ == "__main__":
    sys.exit(main())
