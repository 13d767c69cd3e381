"""What the end-to-end tests share: run the program, with or without ranks, and look at what it left.

The program is the one that SPINSHARD names. A run that takes longer than its limit is killed, its
whole process group, and counts as a hang.
"""
import atexit
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import unittest

import make_model

TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DATA = os.environ.get("SPINSHARD_TEST_DATA", os.path.join(TESTS, "data"))
STORIES = os.path.join(DATA, "stories260K")
TEXT = os.path.join(DATA, "stories.txt")
SHARED = os.environ.get("SPINSHARD_SHARED", os.path.join(os.path.dirname(os.path.dirname(TESTS)), "shared"))
SKIP = 77


def skip(why):
    print("skipped:", why)
    sys.exit(SKIP)


def program():
    path = os.environ.get("SPINSHARD", "")
    if not os.path.isfile(path):
        sys.exit("SPINSHARD names no program: run this through ctest")
    return path


class Result:
    def __init__(self, words, rc, out, err):
        self.words, self.rc, self.out, self.err = words, rc, out, err

    def __str__(self):
        return f"{' '.join(self.words)}\nexit code {self.rc}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"

    def errors(self):
        return [line for line in self.err.splitlines() if line.startswith("spinshard: error:")]

    def json(self):
        return json.loads(self.out)


def command(args, ranks=0):
    """The words of a run; ranks 0: no launcher."""
    words = os.environ.get("SPINSHARD_LAUNCHER", "mpirun --oversubscribe --bind-to none -n").split()
    launcher = [*words, str(ranks)] if ranks else []
    return launcher + [program(), *map(str, args)]


def environment(threads=1, env=None):
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "OMPI_MCA_mpi_yield_when_idle": "1", **(env or {})}


def start(args, ranks=0, threads=1, env=None):
    return subprocess.Popen(command(args, ranks), env=environment(threads, env), text=True, start_new_session=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, errors="replace")


def finish(p, limit=120):
    try:
        out, err = p.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(p.pid, signal.SIGKILL)
        out, err = p.communicate()
        raise AssertionError(f"hangs: {' '.join(p.args)}\n--- stdout\n{out}\n--- stderr\n{err}") from None
    return Result(p.args, p.returncode, out, err)


def spin(*args, ranks=0, threads=1, env=None, limit=120):
    return finish(start(args, ranks, threads, env), limit)


def settings(*pairs):
    """--set words from "key=value" strings."""
    return [word for pair in pairs for word in ("--set", pair)]


def sha256(path):
    with open(path, "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


def tars(out):
    return sorted(n for n in os.listdir(out) if n.endswith(".tar")) if os.path.isdir(out) else []


def tar_hashes(out):
    return {n: sha256(os.path.join(out, n)) for n in tars(out)}


def result_hashes(out, optional=()):
    """Of all that must be the same bytes however a run went."""
    got = tar_hashes(out)
    for n in ("manifest.json", "rotations.safetensors", "recipe.yaml"):
        if n not in optional or os.path.exists(os.path.join(out, n)):
            got[n] = sha256(os.path.join(out, n))
    return got


def unpack(out, to):
    """`tar xf` of all parts; gives the one folder that they make."""
    os.makedirs(to)
    for name in tars(out):
        subprocess.run(["tar", "-C", to, "-xf", os.path.join(out, name)], check=True)
    (folder,) = os.listdir(to)
    return os.path.join(to, folder)


def without_notes(folder):
    """What only this program reads goes from config.json."""
    path = os.path.join(folder, "config.json")
    with open(path, encoding="utf-8") as f:
        config = json.load(f)
    del config["spinshard"]
    with open(path, "w", encoding="utf-8") as f:
        json.dump(config, f)


class Case(unittest.TestCase):
    """A test case with a folder of its own."""

    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="spinshard-")
        self.addCleanup(shutil.rmtree, self.dir, True)

    def path(self, *names):
        return os.path.join(self.dir, *names)

    def good(self, *args, **how):
        r = spin(*args, **how)
        self.assertEqual(r.rc, 0, f"\n{r}")
        self.assertEqual(r.errors(), [], f"\n{r}")
        return r

    def bad(self, code, words, *args, out=None, **how):
        """The run fails with this code (or one of them), says so once with these words, and leaves no output."""
        how.setdefault("limit", 60)
        r = spin(*args, **how)
        codes = code if isinstance(code, tuple) else (code,)
        self.assertIn(r.rc, codes, f"\n{r}")
        self.assertEqual(len(r.errors()), 1, f"one error line is wanted\n{r}")
        for word in words:
            self.assertRegex(r.err, "(?i)" + word, f"\n{r}")
        self.assertNotRegex(r.err, r"Sanitizer|runtime error:", f"\n{r}")
        if out:
            self.assertEqual(tars(out), [], f"partial output\n{r}")
            self.assertFalse(os.path.exists(os.path.join(out, "manifest.json")), f"partial output\n{r}")
        return r

    def perplexity(self, model, text=TEXT, window=128, *more, **how):
        r = self.good("eval", "--model", model, "--text", text, "--window", window, "--json", *more, **how)
        (p,) = r.json()["perplexity"]
        self.assertLess(abs(p["ppl"] - 2.718281828459045 ** p["nll"]), 1e-6 * p["ppl"])
        return p

    def loud_model(self, loud=16, name="loud"):
        """A random model whose residual stream has loud channels (below 1: its weights), and a rotation file to start from
        with R1 = I, which leaves them as they are. Learning then gains far more than kernels or rounding can take."""
        model, out = make_model.make(self.path(name), "--hidden", 64, "--intermediate", 128, "--layers", 2, "--untied",
                                     "--loud", loud), self.path(name + "-had")
        self.good("quantize", "--model", model, "--out", out, *settings("rotate.start=had", "weights.group=channel"))
        return model, make_model.plain_r1(os.path.join(out, "rotations.safetensors"), self.path(name + "-r1.safetensors"))

    def learned_kl(self, model, r1, steps, *more, weights=False):
        """Distance to the model in full precision, on four windows, of what that many steps of `range` make of r1: the loss
        that a phase kl-top meets at its first step."""
        out = self.path(f"kl-{steps}")
        kl = "{objective: kl-top, top_k: 512, steps: 1, batch: 4, window: 96, weights: %s}" % str(weights).lower()
        self.good("quantize", "--model", model, "--out", out, "--calib", TEXT, *settings(
            "calib.windows=4", "calib.window=96", f"rotate.start={r1}", "weights.group=channel",
            "learn=[{objective: range, steps: %d, rows: 2048}, %s]" % (steps, kl), *more), ranks=2)
        with open(os.path.join(out, "events.jsonl")) as f:
            steps = [json.loads(line) for line in f if line.startswith("{") and '"step"' in line]
        return [e["loss"] for e in steps if e["event"] == "step" and e["phase"] == "learn.1"][0]


class OracleServer:
    """oracle_server.py, from the first question to the end of the tests; what it writes to stderr goes to ours."""

    process = None

    @classmethod
    def ask(cls, words, limit):
        if not cls.process or cls.process.poll() is not None:
            cls.process = subprocess.Popen(
                [os.environ["SPINSHARD_ORACLE_PYTHON"], os.path.join(TESTS, "tools", "oracle_server.py")], text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "HF_HUB_OFFLINE": "1"})
            atexit.register(cls.process.kill)
        timer = threading.Timer(limit, cls.process.kill)
        timer.start()
        try:
            print(json.dumps(words), file=cls.process.stdin, flush=True)
            answer = cls.process.stdout.readline()
        finally:
            timer.cancel()
        return json.loads(answer) if answer else {"error": f"it ended, or took longer than {limit} s"}


def oracle(*words, limit=600, script="oracle.py"):
    """Run a script of tests/tools with the Python of the oracles; its last line is JSON."""
    if not os.environ.get("SPINSHARD_ORACLE_PYTHON"):
        skip("SPINSHARD_ORACLE_PYTHON names no Python with torch and transformers")
    answer = OracleServer.ask([script, *map(str, words)], limit)
    if "error" in answer:
        raise AssertionError(f"the oracle failed: {answer['error'][-3000:]}")
    return json.loads(answer["out"].strip().splitlines()[-1])


def main():
    """Run the tests of the script. One that was skipped makes the whole script count as skipped, so that CTest shows it."""
    program()
    done = unittest.main(module="__main__", verbosity=2, exit=False).result
    if not done.wasSuccessful():
        sys.exit(1)
    if done.skipped:
        skip("; ".join(f"{case.id()}: {why}" for case, why in done.skipped))
