"""What the scripts that measure many runs share (bench/*.py): the program on so many
ranks, results that are kept as soon as they are there, and a work folder that holds those of one setting. Whatever
interrupts a script, the same command goes on."""
import hashlib
import json
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAM = os.path.join(ROOT, "build", "release", "spinshard")


class Refused(Exception):
    """The program's message about what it does not do: a result as well."""


def settings(pairs):
    return [word for pair in pairs for word in ("--set", pair)]


def sha256(path):
    with open(path, "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


def launcher(ranks):
    return ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", str(ranks)]


def own_kernels(threads=None):
    """The environment, in which OpenBLAS chooses its kernels by itself; with so many threads a rank, also as root."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS_")}
    if threads:
        env.update(OMP_NUM_THREADS=str(threads), OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    return env


def run(program, ranks, words, refuses, env=None):
    """What the program prints. Refused where refuses(exit code, message) says so; whatever else ends it ends the
    script, 75 (stopped at a commit) too."""
    r = subprocess.run([*(launcher(ranks) if ranks > 1 else []), program, *words], env=env, capture_output=True, text=True)
    errors = [line.split("error: ", 1)[1] for line in r.stderr.splitlines() if "spinshard: error: " in line]
    if r.returncode and errors and refuses(r.returncode, errors[0]):
        raise Refused(errors[0])
    if r.returncode:
        sys.stderr.write(r.stderr[-3000:])
        sys.exit(r.returncode)
    return r.stdout


def keep(path, value):
    with open(path + ".new", "w") as f:
        json.dump(value, f, indent=1)
    os.replace(path + ".new", path)


def kept(path):
    """None where nothing is kept."""
    if not os.path.exists(path):
        return None
    with open(path) as f:
        return json.load(f)


def check_settings(work, now):
    """The results of a work folder are of one model, its texts and settings."""
    path = os.path.join(work, "settings.json")
    if not os.path.exists(path):
        keep(path, now)
    then = kept(path)
    differ = [k for k in now if now[k] != then.get(k)]
    if differ:
        sys.exit(f"{work} holds results of other settings ({', '.join(differ)}): choose another --work")
