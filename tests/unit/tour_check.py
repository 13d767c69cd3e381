#!/usr/bin/env python3
"""The pages of docs/ stay true. Every file of the tree that one of them names exists. Every function that docs/TOUR.md
names is defined in one of the files of its row: not declared there, not called there; a row without files, or with a
folder alone, may name functions of any file. The phases that TOUR.md lists are those of the table in jobs/quantize.c, in
that order."""
import functools
import os
import re
import sys

ROOT = os.environ.get("SPINSHARD_SOURCE") or os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FOLDERS = ("base", "mpi", "quant", "rotations", "model", "pipeline", "shard", "io", "jobs")
PATH = re.compile(r"(?<![\w./<>])((?:" + "|".join(FOLDERS + ("tests", "bench")) + r")/[\w./]+\.(?:c|h|py|sh|md))\b")
# A definition begins a line with its type and ends its head with a brace. In bodies that are compiled for float and
# double the name stands in a macro that adds a suffix.
DEFINITION = re.compile(r"^[A-Za-z_][\w \t\*]*?[\s\*](?:[A-Z_]+\()?([a-z]\w*)\)?\([^;{}]*\)\s*\{", re.MULTILINE)
SUFFIX = re.compile(r"_f(32|64)$")


@functools.cache
def defined_in(path):
    with open(os.path.join(ROOT, path), encoding="utf8") as f:
        return {SUFFIX.sub("", name) for name in DEFINITION.findall(f.read())}


@functools.cache
def defined_anywhere():
    names = set()
    for folder in FOLDERS:
        for at, _, files in os.walk(os.path.join(ROOT, folder)):
            for name in files:
                if name.endswith((".c", ".h")):
                    names |= defined_in(os.path.relpath(os.path.join(at, name), ROOT))
    return names


def files_off():
    """Paths in the pages that lead nowhere."""
    wrong = []
    for name in sorted(n for n in os.listdir(os.path.join(ROOT, "docs")) if n.endswith(".md")):
        with open(os.path.join(ROOT, "docs", name), encoding="utf8") as f:
            text = f.read()
        for path in set(PATH.findall(text)):
            if not os.path.isfile(os.path.join(ROOT, path)) and "NAME" not in path:
                wrong.append(f"docs/{name}: no file {path}")
    return wrong


def rows(text):
    for line in text.splitlines():
        cells = [c.strip() for c in line.strip().strip("|").split("|")]
        if line.startswith("|") and len(cells) == 3 and not set(line) <= set("|-: "):
            yield line, cells


def phases_off(text):
    """The phases of the page against the table in jobs/quantize.c, which is what runs."""
    with open(os.path.join(ROOT, "jobs", "quantize.c"), encoding="utf8") as f:
        table = re.search(r"PHASES\[\] = \{(.*?)\n\};", f.read(), re.DOTALL)
    wanted = re.findall(r'"([^"]+)"', table.group(1)) if table else []
    told = re.findall(r"^\| ([^|]+?) \|", text.partition("| phase | when |")[2].partition("\n\n")[0], re.MULTILINE)
    if wanted and told == wanted:
        return []
    return [f"jobs/quantize.c has the phases {wanted}, docs/TOUR.md has {told}"]


def main():
    wrong, names = [], 0
    with open(os.path.join(ROOT, "docs", "TOUR.md"), encoding="utf8") as f:
        text = f.read()
    # A row that was broken over lines would be no row to the checks below.
    wrong += [f"docs/TOUR.md: a line with a pipe that is no row: {x}" for x in text.splitlines()
              if "|" in x and not re.fullmatch(r"\|.*\|", x)]
    wrong += files_off() + phases_off(text)
    for line, cells in rows(text):
        files = re.findall(r"\b(?:[a-z0-9_]+/)+[a-z0-9_]+\.[ch]\b", line)
        missing = [p for p in files if not os.path.isfile(os.path.join(ROOT, p))]
        wrong += [f"no file {p}: {line}" for p in missing]
        there = [p for p in files if p not in missing]
        for name in re.findall(r"`([a-z0-9_]+)`", cells[1]):
            names += 1
            bare = SUFFIX.sub("", name)
            if there and not any(bare in defined_in(p) for p in there):
                wrong.append(f"{name} is defined in none of {', '.join(there)}")
            elif not there and bare not in defined_anywhere():
                wrong.append(f"{name} is defined nowhere: {line}")
    for line in wrong:
        print(line)
    print(f"{names} functions named, {len(wrong)} wrong")
    return 1 if wrong or names < 30 else 0


if __name__ == "__main__":
    sys.exit(main())
