#!/usr/bin/env python3
"""White space is .clang-format's, as versions 14 to 19 (Debian 12 and 13, Ubuntu 24.04) read it alike. Skips (77) where
clang-format is absent or another, which may see some places otherwise."""
import glob
import os
import re
import shutil
import subprocess
import sys

ROOT = os.environ.get("SPINSHARD_SOURCE") or os.path.dirname(
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def main():
    if not shutil.which("clang-format"):
        print("skipped: clang-format is not installed")
        return 77
    says = subprocess.run(["clang-format", "--version"], capture_output=True, text=True).stdout
    version = re.search(r"version (\d+)", says)
    if not version or not 14 <= int(version.group(1)) <= 19:
        print(f"skipped: {says.strip()} is not one of 14 to 19")
        return 77
    files = [f for f in glob.glob(os.path.join(ROOT, "*/**/*.[ch]"), recursive=True)
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
