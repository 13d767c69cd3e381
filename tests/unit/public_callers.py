#!/usr/bin/env python3
"""Every public function is called, or its address taken, by the program itself, or its header says "For tests" (or the bench) and
so that it is there for them alone: what nobody calls goes, or is called where it was meant to be. The functions come from the symbols of the libraries that the build made
(nm), the callers from the words of the sources, comments and strings taken away.

Twins in fp64 (base/real.h) count with their fp32 function. Needs the build whose program SPINSHARD names; skips (77) without.
"""
import collections
import glob
import os
import re
import subprocess
import sys

ROOT = os.environ.get("SPINSHARD_SOURCE") or os.path.dirname(
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FOLDERS = ("base", "mpi", "quant", "rotations", "model", "io", "shard", "pipeline", "jobs")

def strip(text):
    """C without comments and what stands in quotes."""
    return re.sub(r"/\*.*?\*/|//[^\n]*|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])+'", " ", text, flags=re.S)


def uses(text):
    """How often each name stands in C text, less the places where it is declared or defined at the start of a line."""
    text = strip(text)
    count = collections.Counter(re.findall(r"[A-Za-z_]\w*", text))
    for line in re.finditer(r"^[A-Za-z_][\w \t]*[\s*]\**([A-Za-z_]\w*)\(", text, re.M):
        count[line.group(1)] -= 1
    return count


def said(text):
    """Names whose comment in a header says that they are there for tests or benches: the comment on their own line, or the one
    above them as far as it reaches (to the next that stands above something, or an empty line)."""
    names = set()
    for note in re.finditer(r"/\*.*?\*/", text, re.S):
        if not re.search(r"\bfor[\s*]+(?:tests|(?:the[\s*]+)?bench(?:es)?)\b", note.group(), re.I):
            continue
        before = text[text.rfind("\n", 0, note.start()) + 1:note.start()]
        after = re.split(r"\n[ \t]*(?:\n|/\*)", text[note.end():], maxsplit=1)[0]
        names |= set(re.findall(r"\b([A-Za-z_]\w*)\(", strip(before if before.strip() else after)))
    return names


def check_self():
    """A declaration, a definition, a comment and a string are no call; a call and an address are."""
    text = 'int *a(int);\nint *a(int x) {\n    return 0; /* a(1) */\n}\nconst char *const s = "a(2)";\n'
    assert uses(text)["a"] == 0
    assert uses(text + "int b(void) {\n    return *a(1);\n}\n")["a"] == 1
    assert said("/* Local. One. For\n * tests. */\nint a(int);\n\n/* Local. Two. */\nint b(void);\n") == {"a"}
    assert said("int a(int);\nint b(int); /* local; for benches */\nint c(int);\n") == {"b"}
    assert uses(text + "static const job t = {\n    a};\n")["a"] == 1


def main():
    check_self()
    build = os.path.dirname(os.environ.get("SPINSHARD", ""))
    libraries = [os.path.join(build, f"libhouse_{n}.a") for n in FOLDERS]
    if not build or not all(os.path.isfile(p) for p in libraries):
        print("skipped: no libraries beside the program")
        return 77
    public = set()
    for library in libraries:
        out = subprocess.run(["nm", "--defined-only", library], check=True, capture_output=True, text=True).stdout
        public |= {w[2] for w in map(str.split, out.splitlines()) if len(w) == 3 and w[1] == "T"}
    with open(os.path.join(ROOT, "base/real.h"), encoding="utf-8") as f:
        public -= set(re.findall(r"^#define \w+\s+(\w+)", f.read(), re.M))
    count, excused, pasted = collections.Counter(), set(), set()
    for folder in FOLDERS:
        for path in glob.glob(os.path.join(ROOT, folder, "**", "*.[ch]"), recursive=True):
            if path == os.path.join(ROOT, "base/real.h"):
                continue
            with open(path, encoding="utf-8") as f:
                text = f.read()
            for name, n in uses(text).items():
                count[name] += n  # below zero where it is declared and defined
            pasted |= set(re.findall(r"\b([A-Za-z_]\w*_)##", strip(text)))
            if path.endswith(".h"):
                excused |= said(text)
    # A table made by a macro names them in two parts, as the commands' functions (job_ and the word).
    idle = {n for n in public if count[n] <= 0 and not n.startswith(tuple(pasted))}
    print("pasted:", ", ".join(sorted(pasted)))
    for name in sorted(idle - excused):
        print(f"no caller in the program: {name}; remove it, call it, or say in its header what tests want of it (For tests)")
    print(f"{len(public)} public functions, {len(idle)} of them for tests and benches alone")
    if len(public) < 300:
        sys.exit("that is too little to have looked at the right build")
    return 1 if idle - excused else 0


if __name__ == "__main__":
    sys.exit(main())
