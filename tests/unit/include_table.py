#!/usr/bin/env python3
"""Hold the tree against docs/LAYOUT.md: who includes whom, one door per dependency; and against the
habits that a reader can count on: unique file names, files and functions of a readable size, and
no name of a machine or of a package host.

The tables are parsed from docs/LAYOUT.md, so that page stays the one place where the rules stand.
Exit status 1 with one line for each offence.
"""
import os
import re
import subprocess
import sys

ROOT = os.environ.get("SPINSHARD_SOURCE") or os.path.dirname(
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
GENERATED = {"version.h", "job_script.h"}  # configured by CMake from cmake/*.h.in
MAX_LINES, MAX_FUNCTION = 1000, 150

offences, notes = [], []


def tables(text):
    """Tables of a Markdown page: {tuple of column names: [rows of cells]}."""
    out, head = {}, None
    for line in text.splitlines():
        if not line.startswith("|"):
            head = None
            continue
        cells = [c.strip() for c in line.strip().strip("|").split("|")]
        if head is None:
            head = tuple(cells)
            out[head] = []
        elif not set(line) <= set("|-: "):
            out[head].append(cells)
    return out


def tracked():
    """Every file of the project: what git knows, or in a tarball all but the build."""
    got = subprocess.run(["git", "-C", ROOT, "ls-files", "-co", "--exclude-standard"],
                         capture_output=True, text=True)
    if got.returncode == 0 and got.stdout:
        return sorted(p for p in got.stdout.splitlines() if os.path.isfile(os.path.join(ROOT, p)))
    out = []
    for folder, dirs, files in os.walk(ROOT):
        dirs[:] = [d for d in dirs if d not in (".git", "build", "__pycache__")]
        out += [os.path.relpath(os.path.join(folder, f), ROOT) for f in files]
    return sorted(out)


def ticked(cell):
    return re.findall(r"`([^`]+)`", cell)


def words(cell):
    return cell.replace("`", " ").replace(",", " ").split()


class Rules:
    def __init__(self):
        with open(os.path.join(ROOT, "docs/LAYOUT.md"), encoding="utf-8") as f:
            found = tables(f.read())
        try:
            self.folders = {r[0]: set(words(r[1])) for r in found["folder", "may include"]}
            doors = found["header", "only in"]
            self.headers = {(r[0], r[1]): set(ticked(r[2])) for r in found["folder", "of", "only the headers"]}
            self.files = {(r[0], r[1]): ticked(r[2]) for r in found["folder", "of", "only in the files"]}
            self.rooms = {r[0]: set(words(r[1])) for r in found["room", "may include, and itself"]}
        except KeyError as e:
            sys.exit(f"docs/LAYOUT.md has no table with the columns {e}")
        self.check_rooms()
        self.doors = {h.strip("<>"): words(r[1]) for r in doors for h in ticked(r[0])}
        if len(self.folders) < 5 or len(self.doors) < 5:
            sys.exit("docs/LAYOUT.md: the tables are too short to be true")

    def check_rooms(self):
        """The rooms have an order: each looks at rooms of lines below its own alone."""
        names = list(self.rooms)
        if len(names) < 5:
            sys.exit("docs/LAYOUT.md: the table of rooms is too short to be true")
        for at, (room, below) in enumerate(self.rooms.items()):
            for other in below:
                if other not in names[at + 1:]:
                    offences.append(f"docs/LAYOUT.md: {room} may not include {other}: it does not stand below")

    def check_room(self, path, line, name):
        """Within a folder that has rooms."""
        room, target = os.path.dirname(path), os.path.dirname(name)
        if room not in self.rooms and any(r.split("/")[0] == room.split("/")[0] for r in self.rooms):
            offences.append(f"{path}: docs/LAYOUT.md has no room {room}")
        elif room in self.rooms and room.split("/")[0] == target.split("/")[0] and target != room and \
                target not in self.rooms[room]:
            offences.append(f"{path}:{line}: the room {room} may not include {target} ({name})")

    def check_own(self, path, line, name):
        folder, target = path.split("/")[0], name.split("/")[0]
        where = f"{path}:{line}"
        self.check_room(path, line, name)
        if name in GENERATED:
            return
        if "/" not in name:
            offences.append(f'{where}: "{name}": name the folder too')
        elif not os.path.isfile(os.path.join(ROOT, name)):
            offences.append(f'{where}: "{name}" does not exist')
        elif target != folder and target not in self.folders.get(folder, set()):
            offences.append(f"{where}: {folder} may not include {target} ({name})")
        elif (folder, target) in self.headers and name not in self.headers[folder, target]:
            offences.append(f"{where}: of {target}, {folder} may include "
                            f"only {sorted(self.headers[folder, target])}, not {name}")
        elif (folder, target) in self.files and not any(
                re.fullmatch(p.replace(".*", r"\.[ch]"), path) for p in self.files[folder, target]):
            offences.append(f"{where}: in {folder}, only {self.files[folder, target]} may include {target}")

    def check_system(self, path, line, name):
        for header, owners in self.doors.items():
            if name == header and not any(path == o or (o.endswith("/") and path.startswith(o))
                                          for o in owners):
                offences.append(f"{path}:{line}: <{name}> is included only in {', '.join(owners)}")


def check_size(path, lines):
    if len(lines) > MAX_LINES:
        offences.append(f"{path}: {len(lines)} lines; cut it")
    elif len(lines) > 600:
        notes.append(f"{path}: {len(lines)} lines")
    start = None
    for i, line in enumerate(lines, 1):
        if re.match(r"^[A-Za-z_].*[)] \{$", line) or (line == "{" and start is None):
            start = i
        elif line.startswith("}") and start is not None:
            if i - start > MAX_FUNCTION:
                offences.append(f"{path}:{start}: a function of {i - start} lines")
            start = None


def check_guard(path, text):
    want = "SPINSHARD_" + re.sub(r"[^A-Za-z0-9]", "_", path).upper()
    if f"#ifndef {want}\n#define {want}\n" not in text and "#ifndef SPINSHARD_" in text:
        offences.append(f"{path}: its guard is not {want}")
    if not text.startswith("/*"):
        offences.append(f"{path}: does not begin with a comment that says what it is")


# Folders whose headers declare only what the source of the same name defines.
ONE_HEADER = ("jobs/", "pipeline/")


def declared(text):
    """Functions that a header declares and does not define."""
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    return re.findall(r"^(?!static|typedef|#|\s|\})[A-Za-z_][\w\s*]*?\b(\w+)\([^;{}]*?\)\s*;", text, re.M)


def check_one_header(path, text, source):
    """source: text of the .c beside it; empty where there is none."""
    for name in declared(text):
        if not re.search(rf"^[A-Za-z_][^;=\n]*\b{name}\(", source, re.M):
            offences.append(f"{path}: declares {name}, which {path[:-2]}.c does not define")


PRODUCT = ("base/", "mpi/", "quant/", "rotations/", "model/", "io/", "shard/", "pipeline/", "jobs/")
RIDDLE = re.compile(r"/\*\s*(?:(?:Local|Collective|Root only)[^.\n]*\.\s*)?(?:The s|S)ame\b")


def check_comments(path, text):
    """A source says in its first lines how it does what its header promises; a doc comment does not lean on the one
    before it."""
    if not text.startswith("/*"):
        offences.append(f"{path}: does not begin with a comment (of a source: on its algorithm)")
    for found in RIDDLE.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        offences.append(f'{path}:{line}: a comment begins with "The same": say what it is')


def check_self():
    """The rules find what they are for."""
    before = len(offences)
    check_comments("a.c", '#include "a.h"\n')
    check_comments("b.h", "/* b */\n/* Local. The same in fp32. */\n/* Same words. */\n/* Local. As f. */\n")
    if [o.split(": ")[0] for o in offences[before:]] != ["a.c", "b.h:2", "b.h:3"]:
        sys.exit(f"the check of comments finds {offences[before:]}")
    del offences[before:]
    check_one_header("a.h", "/* a */\nint f(int x);\nerr g(void);\n", "int f(int x) {\n}\n")
    found = offences[before:]
    del offences[before:]
    if found != ["a.h: declares g, which a.c does not define"]:
        sys.exit(f"the check of headers finds {found}")


# Written in pieces so that this file does not name what it looks for.
STRANGERS = re.compile("|".join([
    r"(?<![\w.}$)\"'-])/(?:work|root|tmp/w)/", r"pyp" r"i\.org", "pythonhosted", r"deb\.debian\." "org",
    r"hugging" r"face\.co/", r"\bcd" r"n\b.*mirror", r"/home/\w+"]))


def check_strangers(path, text):
    for i, line in enumerate(text.splitlines(), 1):
        found = STRANGERS.search(line)
        if found:
            offences.append(f"{path}:{i}: names a machine or a package host: {found.group(0)}")


def check_sources(rules, paths):
    names, seen = {}, 0
    for path in paths:
        if not path.endswith((".c", ".h")):
            continue
        with open(os.path.join(ROOT, path), encoding="utf-8") as f:
            text = f.read()
        for i, line in enumerate(text.splitlines(), 1):
            own = re.match(r'\s*#\s*include\s+"([^"]+)"', line)
            system = re.match(r"\s*#\s*include\s+<([^>]+)>", line)
            if own:
                rules.check_own(path, i, own.group(1))
                seen += 1
            if system:
                rules.check_system(path, i, system.group(1))
                seen += 1
        check_size(path, text.splitlines())
        if path.startswith(PRODUCT):
            check_comments(path, text)
        if path.endswith(".h"):
            check_guard(path, text)
        if path.endswith(".h") and path.startswith(ONE_HEADER):
            source = os.path.join(ROOT, re.sub(r"(_internal)?\.h$", ".c", path))
            check_one_header(path, text, open(source, encoding="utf-8").read() if os.path.isfile(source) else "")
        base = os.path.basename(path)
        if base in names:
            offences.append(f"{path}: {names[base]} has the same file name")
        names[base] = path
    return seen


def main():
    check_self()
    rules, paths = Rules(), tracked()
    seen = check_sources(rules, paths)
    for path in paths:
        if path.startswith("tests/data/") or path == "tests/unit/include_table.py":
            continue
        with open(os.path.join(ROOT, path), "rb") as f:
            data = f.read()
        if b"\0" not in data:
            check_strangers(path, data.decode("utf-8", "replace"))
    for note in notes:
        print("note:", note)
    for offence in offences:
        print(offence)
    print(f"{seen} includes in {len(paths)} files: {len(offences)} offences")
    if seen < 50:
        sys.exit("that is too few includes to have looked at the right tree")
    sys.exit(1 if offences else 0)


if __name__ == "__main__":
    main()
