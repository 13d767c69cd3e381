#!/usr/bin/env python3
"""White space is .clang-format's. Skips (77) where clang-format is absent."""
import glob
import os
import shutil
import subprocess
import sys

ROOT = os.environ.get("SPINSHARD_SOURCE") or os.path.dirname(
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def main():
    if not shutil.which("clang-format"):
        print("skipped: clang-format is not installed")
        return 77
    files = [f for pattern in ("*/*.[ch]", "tests/*/*.[ch]") for f in glob.glob(os.path.join(ROOT, pattern))
             if not os.path.relpath(f, ROOT).startswith("build")]
    if len(files) < 20:
        sys.exit("that is too few files to have looked at the right tree")
    got = subprocess.run(["clang-format", "--dry-run", "-Werror", "--ferror-limit=1", *sorted(files)],
                         capture_output=True, text=True)
    bad = sorted({line.split(":")[0] for line in got.stderr.splitlines() if ": error:" in line})
    for f in bad:
        print(f"{os.path.relpath(f, ROOT)}: run clang-format -i on it")
    print(f"{len(files)} files, {len(bad)} to format")
    return 1 if got.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
