#!/usr/bin/env python3
"""cmake/Launcher.cmake takes the launcher of the MPI that is compiled for, where another one's is the first in PATH, and says
so; keeps one that says neither; and stops where there is none. Launchers are scripts here that say what the real ones say."""
import os
import shutil
import subprocess
import sys
import tempfile

ROOT = os.environ.get("SPINSHARD_SOURCE") or os.path.dirname(
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SAYS = {"open4": "mpiexec (OpenRTE) 4.1.4", "open5": "mpiexec (Open MPI) 5.0.7", "hydra": "HYDRA build details:",
        "intel": "Intel(R) MPI Library for Linux* OS, Version 2021.11", "srun": "slurm 22.05.8"}
# Which MPI, what is installed under which name, which one FindMPI gave, which is to be taken (none: configuration stops).
CASES = (("mpich", {"mpiexec": "open4", "mpiexec.mpich": "hydra"}, "mpiexec", "mpiexec.mpich"),
         ("mpich", {"mpiexec": "open5", "mpiexec.hydra": "intel"}, "mpiexec", "mpiexec.hydra"),
         ("mpich", {"mpiexec": "hydra", "mpiexec.openmpi": "open4"}, "mpiexec", "mpiexec"),
         ("mpich", {"mpiexec": "open4", "mpiexec.mpich": "open4"}, "mpiexec", None),
         ("mpich", {"mpiexec.mpich": "hydra"}, "launcher-NOTFOUND", "mpiexec.mpich"),
         ("open", {"mpiexec": "hydra", "orterun": "open4"}, "mpiexec", "orterun"),
         ("open", {"mpiexec": "open5"}, "mpiexec", "mpiexec"),
         ("open", {"mpiexec": "hydra"}, "mpiexec", None),
         ("open", {"srun": "srun", "mpiexec": "open4"}, "srun", "srun"))


def chosen(folder, mpi, installed, found):
    """The name of the launcher that is taken; None where configuration stops."""
    for name, kind in installed.items():
        path = os.path.join(folder, name)
        with open(path, "w", encoding="utf-8") as f:
            f.write(f"#!/bin/sh\necho '{SAYS[kind]}'\n")
        os.chmod(path, 0o755)
    found = os.path.join(folder, found) if found in installed else found
    script = os.path.join(folder, "choose.cmake")
    with open(script, "w", encoding="utf-8") as f:
        f.write(f'include("{ROOT}/cmake/Launcher.cmake")\n'
                f'find_launcher(taken {"ON" if mpi == "open" else "OFF"} "{found}" "{folder}/mpicc")\n'
                'message("taken ${taken}")\n')
    # PATH is the folder alone, so that what this machine has installed is not seen.
    r = subprocess.run([shutil.which("cmake"), "-DCMAKE_FIND_USE_CMAKE_SYSTEM_PATH=OFF", "-P", script], env={"PATH": folder},
                       capture_output=True, text=True)
    lines = [line for line in r.stderr.splitlines() if line.startswith("taken ")]
    if r.returncode and "-DMPIEXEC_EXECUTABLE=" in r.stderr:
        return None
    assert r.returncode == 0 and len(lines) == 1, r.stdout + r.stderr
    return os.path.basename(lines[0][len("taken "):])


def main():
    if not shutil.which("cmake"):
        print("skipped: no cmake in PATH")
        return 77
    wrong = []
    for mpi, installed, found, want in CASES:
        with tempfile.TemporaryDirectory() as folder:
            got = chosen(folder, mpi, installed, found)
        if got != want:
            wrong.append(f"{mpi}, {installed}, {found}: {got}, not {want}")
    print("\n".join(wrong) or f"{len(CASES)} cases")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
