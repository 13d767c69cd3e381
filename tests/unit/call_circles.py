#!/usr/bin/env python3
"""Who calls whom, read from the symbols of the libraries that the build made (nm), so a call through any header, or
through none, counts:

- in jobs/ and pipeline/ no two sources call each other in a circle, directly or through others. Only a source that
  calls itself is no circle;
- no source calls or names what is defined in a folder or room that docs/LAYOUT.md does not let it include: calls go
  down.

Needs the build whose program SPINSHARD names; skips (77) without.
"""
import os
import subprocess
import sys

import include_table


WATCHED = ("_pipeline.a", "_jobs.a")  # libraries in which a circle is an offence


def circles(calls):
    """Strongly connected components of more than one node of {node: set of nodes} (Tarjan)."""
    index, low, stack, on, found = {}, {}, [], set(), []

    def visit(v):
        index[v] = low[v] = len(index)
        stack.append(v)
        on.add(v)
        for w in sorted(calls.get(v, ())):
            if w not in index:
                visit(w)
                low[v] = min(low[v], low[w])
            elif w in on:
                low[v] = min(low[v], index[w])
        if low[v] == index[v]:
            part = []
            while True:
                part.append(stack.pop())
                on.discard(part[-1])
                if part[-1] == v:
                    break
            if len(part) > 1:
                found.append(sorted(part))

    for node in sorted(calls):
        if node not in index:
            visit(node)
    return found


def symbols(library):
    """{object: (defined, undefined)} of a static library."""
    out, now = {}, None
    text = subprocess.run(["nm", library], check=True, capture_output=True, text=True).stdout
    for line in text.splitlines():
        words = line.split()
        if line.endswith(":"):
            now = out.setdefault(line[:-1], (set(), set()))  # *_real.c: two members, one source
        elif len(words) >= 2:
            kind, name = words[-2], words[-1]
            if kind == "U":
                now[1].add(name)
            elif kind.isupper():
                now[0].add(name)
    return out


def upward(calls, folder_of, rules):
    """[(caller, callee)] that cross folders or rooms in a way that the tables of docs/LAYOUT.md do not know."""
    out = []
    for a in sorted(calls):
        for b in sorted(calls[a]):
            here, there = folder_of[a], folder_of[b]
            same_top = here.split("/")[0] == there.split("/")[0]
            may = rules.rooms.get(here, set()) if same_top else rules.folders.get(here.split("/")[0], set())
            if here != there and (there if same_top else there.split("/")[0]) not in may:
                out.append((a, b))
    return out


def check_self(rules):
    """The search itself finds a circle of three, and none where there is none; a call up between rooms and between
    folders, and none of those that go down."""
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    folder_of = {"setup": "jobs/setup", "phase": "jobs/phases", "learn": "pipeline/learn", "command": "jobs", "err": "base"}
    down = {"command": {"phase", "err"}, "phase": {"setup", "learn", "phase"}, "learn": {"err"}}
    assert upward(down, folder_of, rules) == []
    up = {"setup": {"phase"}, "learn": {"phase"}, "err": {"learn"}, "phase": {"command"}}
    assert upward(up, folder_of, rules) == [(a, min(b)) for a, b in sorted(up.items())]


def main():
    rules = include_table.Rules()
    check_self(rules)
    build = os.path.dirname(os.environ.get("SPINSHARD", ""))
    names = ("base", "mpi", "quant", "rotations", "model", "io", "shard", "pipeline", "jobs")
    libraries = [os.path.join(build, f"libhouse_{n}.a") for n in names]
    if not build or not all(os.path.isfile(p) for p in libraries):
        print("skipped: no libraries beside the program")
        return 77
    objects, owner, calls, watched = {}, {}, {}, set()
    for library in libraries:
        for member, (defined, undefined) in symbols(library).items():
            objects[member] = undefined
            if library.endswith(WATCHED):
                watched.add(member)
            for name in defined:
                owner[name] = member
    for member, undefined in objects.items():
        calls[member] = {owner[n] for n in undefined if n in owner and owner[n] != member}
    found = [part for part in circles(calls) if watched & set(part)]
    for part in found:
        print("a circle of calls:", ", ".join(part))
        for a in part:
            for name in sorted(objects[a]):
                if owner.get(name) in part and owner[name] != a:
                    print(f"  {a} -> {owner[name]}: {name}")
    sources = [p for p in include_table.tracked() if p.endswith(".c") and p.split("/")[0] in names]
    folder_of = {os.path.basename(p) + ".o": os.path.dirname(p) for p in sources}
    against = upward(calls, folder_of, rules)
    for a, b in against:
        used = sorted(n for n in objects[a] if owner.get(n) == b)
        print(f"{folder_of[a]}/{a} calls up into {folder_of[b]}/{b}: {', '.join(used)}")
    edges = sum(len(c) for c in calls.values())
    print(f"{len(objects)} sources, {edges} pairs that call, {len(found)} circles, {len(against)} calls up")
    if len(objects) < 100 or edges < 200:
        sys.exit("that is too little to have looked at the right build")
    return 1 if found or against else 0


if __name__ == "__main__":
    sys.exit(main())
