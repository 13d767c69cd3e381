#!/usr/bin/env python3
"""docs/TOUR.md stays true: every file it names exists, every function it names is in one of the files of its row,
or, where a row names several, at least somewhere in the tree."""
import os
import re
import sys

ROOT = os.environ.get("SPINSHARD_SOURCE") or os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def text_of(path):
    with open(os.path.join(ROOT, path), encoding="utf8") as f:
        return f.read()


def sources():
    for folder in ("base", "mpi", "quant", "rotations", "model", "pipeline", "shard", "io", "jobs"):
        for room, _, names in sorted(os.walk(os.path.join(ROOT, folder))):
            for name in sorted(names):
                if name.endswith((".c", ".h")):
                    yield text_of(os.path.join(room, name))


def main():
    everything, wrong, names = "\n".join(sources()), [], 0
    for row in text_of("docs/TOUR.md").splitlines():
        cells = [c.strip() for c in row.strip().strip("|").split("|")]
        if not row.startswith("|") or len(cells) != 3 or set(row) <= set("|-"):
            continue
        files = re.findall(r"[a-z0-9_]+(?:/[a-z0-9_]+)+\.[ch]", row)
        wrong += [f"no file {f}" for f in files if not os.path.isfile(os.path.join(ROOT, f))]
        for name in re.findall(r"`([a-z0-9_]+)`", cells[1]):
            names += 1
            # bodies compiled for float and double carry a suffix that the preprocessor adds
            if not re.search(rf"\b{name}(_f32|_f64)?\b", everything) and name not in everything:
                wrong.append(f"no function {name}: {row}")
            elif files and not any(name in text_of(f) for f in files if os.path.isfile(os.path.join(ROOT, f))):
                wrong.append(f"{name} is in none of {', '.join(files)}")
    for line in wrong:
        print(line)
    print(f"{names} functions named, {len(wrong)} wrong")
    return 1 if wrong or names < 30 else 0


if __name__ == "__main__":
    sys.exit(main())
