#!/usr/bin/env python3
"""Sources named *_real.c are compiled twice, in fp32 and, renamed by base/real.h, in fp64. Their objects must define
the same public functions: each fp32 one has its fp64 twin under the name that base/real.h gives it, and nothing else is
there. The fp64 object calls no fp32 function, and base/real.h names nothing that no such source has.

Needs the build whose program SPINSHARD names; skips (77) without.
"""
import glob
import os
import re
import subprocess
import sys

ROOT = os.environ.get("SPINSHARD_SOURCE") or os.path.dirname(
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def renames(text):
    """{fp32 name: fp64 name} of the renaming header."""
    return dict(re.findall(r"^#define (\w+)\s+(\w+)(?:\s+/\*.*\*/)?$", text, re.M))


def compare(source, narrow, wide, called, names):
    """Offences of one source. narrow, wide: what its two objects define; called: what the fp64 one calls besides."""
    out = [f"{source}: {n} is public in fp32 and has no name in base/real.h" for n in sorted(narrow - set(names))]
    twins = {names[n] for n in narrow & set(names)}
    out += [f"{source}: {n} is not defined in fp64" for n in sorted(twins - wide)]
    out += [f"{source}: fp64 defines {n}, which is no twin" for n in sorted(wide - twins)]
    return out + [f"{source}: the fp64 object calls {n}" for n in sorted(called) if n in names or n.endswith("_f32")]


def check_last(source, text):
    """base/real.h is included once, and last."""
    includes = re.findall(r"^#\s*include\s+[\"<]([^\">]+)", text, re.M)
    if includes.count("base/real.h") != 1 or includes[-1] != "base/real.h":
        return [f"{source}: base/real.h is not its last include"]
    return []


def check_self():
    names = renames("#define a_f32 a_f64\n#define b   b_f64 /* of c */\n#define GUARD_H\n")
    assert names == {"a_f32": "a_f64", "b": "b_f64"}, names
    assert compare("s", {"a_f32", "b"}, {"a_f64", "b_f64"}, {"memcpy"}, names) == []
    found = compare("s", {"a_f32", "x"}, {"b_f64"}, {"a_f32"}, names)
    assert [f.split()[1] for f in found] == ["x", "a_f64", "fp64", "the"], found
    assert not check_last("s", '#include "a.h"\n#include "base/real.h"\n')
    assert check_last("s", '#include "base/real.h"\n#include "a.h"\n') and check_last("s", '#include "a.h"\n')


def symbols(path):
    """What an object defines for others, and what it needs."""
    text = subprocess.run(["nm", "-g", path], check=True, capture_output=True, text=True).stdout
    words = [line.split() for line in text.splitlines() if line.strip()]
    return ({w[-1] for w in words if w[-2] in "TDBRV"}, {w[-1] for w in words if w[-2] == "U"})


def main():
    check_self()
    build = os.path.dirname(os.environ.get("SPINSHARD", ""))
    sources = sorted(os.path.relpath(p, ROOT) for p in glob.glob(os.path.join(ROOT, "*", "*_real.c")))
    objects = {s: [os.path.join(build, "CMakeFiles", f"house_{s.split('/')[0]}{k}.dir", s + ".o") for k in ("", "_f64")]
               for s in sources}
    if not build or not all(os.path.isfile(p) for pair in objects.values() for p in pair):
        print("skipped: no objects beside the program")
        return 77
    with open(os.path.join(ROOT, "base", "real.h"), encoding="utf-8") as f:
        names = renames(f.read())
    offences, count, words = [], 0, set()
    for source, (narrow, wide) in objects.items():
        with open(os.path.join(ROOT, source), encoding="utf-8") as f:
            text = f.read()
        words |= set(re.findall(r"\w+", text))
        defined, (twins, called) = symbols(narrow)[0], symbols(wide)
        count += len(defined)
        offences += check_last(source, text) + compare(source, defined, twins, called, names)
    offences += [f"base/real.h: no source uses {n}" for n in sorted(set(names) - words)]
    for offence in offences:
        print(offence)
    print(f"{len(sources)} sources, {count} public functions in fp32: {len(offences)} offences")
    if len(sources) < 8 or count < 20:
        sys.exit("that is too little to have looked at the right build")
    return 1 if offences else 0


if __name__ == "__main__":
    sys.exit(main())
