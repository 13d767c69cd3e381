#!/usr/bin/env python3
"""An unfinished run: it is described by status, goes on with the same command, refuses another one, and has
one writer."""
import json
import os
import shutil
import signal
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import make_model  # noqa: E402
from spin import Case, finish, main, settings, spin, start, tar_hashes  # noqa: E402

VERIFY, MISMATCH, STOPPED = 4, 7, 75
SHAPE = ["--hidden", 64, "--intermediate", 128, "--layers", 12, "--untied"]
HOW = settings("weights.group=32")


def events(out):
    """The whole lines of events.jsonl."""
    try:
        with open(os.path.join(out, "events.jsonl")) as f:
            return [json.loads(line) for line in f if line.startswith("{") and line.endswith("}\n")]
    except FileNotFoundError:
        return []


class Restart(Case):
    def setUp(self):
        super().setUp()
        self.model = make_model.make(self.path("m"), *SHAPE)
        self.out = self.path("out")
        self.args = ["quantize", "--model", self.model, "--out", self.out, *HOW]

    def whole(self):
        ref = self.path("ref")
        self.good("quantize", "--model", self.model, "--out", ref, *HOW)
        return tar_hashes(ref)

    def unfinished(self):
        """A run that was killed behind its first commit of some units; an earlier one, of none, is made by the clock."""
        for n in range(1, 50):
            shutil.rmtree(self.out, True)
            r = spin(*self.args, env={"SPINSHARD_FAULT": f"commit:{n}:0:kill"})
            self.assertEqual(r.rc, -signal.SIGKILL, f"the run came to its end before it kept any layer\n{r}")
            if self.good("status", self.out, "--json").json()["units_done"] > 0:
                return
        self.fail("no unit was kept")

    def paused(self, at="commit:1"):
        """A run that waits, alive: behind its first commit, or before that call."""
        p = start(self.args, env={"SPINSHARD_FAULT": at + ":0:stop"})
        while p.poll() is None:
            with open(f"/proc/{p.pid}/stat") as f:
                if f.read().rsplit(")", 1)[1].split()[0] == "T":
                    return p
            time.sleep(0.001)
        self.fail(f"it came to its end\n{finish(p)}")

    def test_goes_on(self):
        self.unfinished()
        self.assertTrue(self.good("status", self.out).out.strip())
        self.assertIsInstance(self.good("status", self.out, "--json").json(), dict)
        self.good(*self.args, ranks=3)
        self.assertEqual(self.whole(), tar_hashes(self.out))
        self.assertFalse(os.path.exists(os.path.join(self.out, "run")))
        lines = events(self.out)
        self.assertEqual({e["slice"] for e in lines}, {0, 1})
        done = [e["done"] for e in lines if e["event"] == "commit"]
        self.assertEqual(done, sorted(done), "layers were made again")

    def test_refuses_another_recipe(self):
        self.unfinished()
        self.bad(MISMATCH, ["recipe|seed"], *self.args, "--seed", 99, out=self.out)
        self.bad(MISMATCH, ["recipe|symmetric"], *self.args, "--set", "weights.symmetric=false", out=self.out, ranks=2)
        self.good(*self.args)
        self.assertEqual(self.whole(), tar_hashes(self.out))

    def test_refuses_another_model(self):
        self.unfinished()
        other = make_model.make(self.path("other"), "--layers", 5)
        self.bad(MISMATCH, ["config|header|model"], "quantize", "--model", other, "--out", self.out, *HOW, out=self.out)

    def test_lost_objects_are_made_again(self):
        self.unfinished()
        objects = os.path.join(self.out, "run", "objects")
        names = sorted(n for n in os.listdir(objects) if len(n) == 64)
        with open(os.path.join(objects, names[-1]), "r+b") as f:
            f.write(b"damage")
        os.remove(os.path.join(objects, names[0]))
        self.good(*self.args, ranks=2)
        self.assertEqual(self.whole(), tar_hashes(self.out))

    def test_refuses_changed_weights(self):
        """Same config and headers, other numbers: layers that are read again are compared by hash, and those
        that are not are found by verify --source."""
        self.unfinished()
        other = make_model.make(self.path("other"), *SHAPE, "--seed", 2)
        for name in os.listdir(other):
            shutil.copy(os.path.join(other, name), os.path.join(self.model, name))
        copy = self.path("copy")
        shutil.copytree(self.out, copy)
        for name in os.listdir(os.path.join(self.out, "run", "objects")):
            os.remove(os.path.join(self.out, "run", "objects", name))
        self.bad(MISMATCH, ["--force"], *self.args, out=self.out)
        r = spin("quantize", "--model", self.model, "--out", copy, *HOW)
        if r.rc == 0:
            self.bad(VERIFY, ["layers|embed"], "verify", copy, "--source", self.model)

    def test_damaged_state(self):
        self.unfinished()
        path = os.path.join(self.out, "run", "state.json")
        with open(path, "rb") as f:
            good = f.read()
        for bad in (b"", good[:len(good) // 2], b"null", good.replace(b"0", b"1")):
            with open(path, "wb") as f:
                f.write(bad)
            r = spin(*self.args, limit=60)
            if r.rc == 0:  # it began again or fell back: then the bytes are right
                self.assertEqual(self.whole(), tar_hashes(self.out))
                return
            self.assertIn(r.rc, (3, MISMATCH), f"\n{r}")
            self.assertEqual(len(r.errors()), 1, f"\n{r}")

    def test_one_writer(self):
        """A second run on the folder of a live one is refused; of a dead one whose pid lives on, it is not."""
        p = self.paused()
        self.bad(MISMATCH, [f"pid {p.pid}"], *self.args, out=self.out)
        self.bad(MISMATCH, [f"pid {p.pid}"], *self.args, "--force", out=self.out)
        self.assertTrue(os.path.isfile(os.path.join(self.out, "run", "state.json")), "the folder of a live run was removed")
        p.kill()
        finish(p)
        path = os.path.join(self.out, "run", "owner")
        with open(path) as f:
            owner = json.load(f)
        self.assertGreater(owner["start"], 0)
        owner["pid"] = os.getpid()  # alive, but it started at another time
        with open(path, "w") as f:
            json.dump(owner, f)
        self.good(*self.args)
        self.assertEqual(self.whole(), tar_hashes(self.out))

    def owned_elsewhere(self, **changes):
        """The owner file as a job on another host would have left it."""
        path = os.path.join(self.out, "run", "owner")
        with open(path) as f:
            owner = {**json.load(f), "host": "elsewhere", "job": "77", "step": "0", **changes}
        with open(path + ".new", "w") as f:
            json.dump(owner, f)
        os.replace(path + ".new", path)

    def squeue(self, says):
        """An environment in which Slurm says this of any job."""
        path = self.path("bin")
        os.makedirs(path, exist_ok=True)
        with open(os.path.join(path, "squeue"), "w") as f:
            f.write(f"#!/bin/sh\n{says}\n")
        os.chmod(os.path.join(path, "squeue"), 0o755)
        return {"PATH": path + os.pathsep + os.environ["PATH"]}

    def test_other_host(self):
        """Slurm says whether the job that held the folder is gone; that it beats is seen by its beat, not by clocks."""
        self.unfinished()
        self.owned_elsewhere()
        beats, cluster = iter(range(1, 1 << 30)), {}
        over = threading.Event()

        def beat():
            while not over.wait(0.2):
                self.owned_elsewhere(beat=f"{next(beats):012}", heartbeat=1, **cluster)
        beating = threading.Thread(target=beat)
        beating.start()
        try:
            self.bad(MISMATCH, ["host elsewhere", "job 77", "--take-over"], *self.args, out=self.out,
                     env=self.squeue("echo RUNNING"))
            gone = self.squeue("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
            r = self.bad(MISMATCH, ["host elsewhere"], *self.args, out=self.out, env=gone)  # it is hidden from this user
            self.assertNotIn("watching for 60 s", r.err)
            cluster["cluster"] = "there"  # whose jobs are not known to the Slurm of this one
            r = self.bad(MISMATCH, ["host elsewhere", "watching for 60 s"], *self.args, out=self.out,
                         env={**gone, "SLURM_CLUSTER_NAME": "here"})
        finally:
            over.set()
            beating.join()
        began = time.monotonic()
        self.good(*self.args, env={**gone, "SLURM_CLUSTER_NAME": "there"})
        self.assertLess(time.monotonic() - began, 60, "it did not ask, but watched")
        self.assertEqual(self.whole(), tar_hashes(self.out))

    def test_taken_over(self):
        """A run that was stopped and finds its folder taken over when it wakes ends with 7 and leaves it alone: before
        its next commit, and where an object that it was writing is gone."""
        for at in "commit:1", "rename:3":
            with self.subTest(at):
                p = self.paused(at)
                self.good(*self.args, "--take-over")
                want = tar_hashes(self.out)
                p.send_signal(signal.SIGCONT)
                r = finish(p)
                self.assertEqual(r.rc, MISMATCH, r)
                self.assertIn("taken this folder over", r.err)
                self.assertEqual(want, tar_hashes(self.out))
                self.good("verify", self.out)
                shutil.rmtree(self.out)

    def test_stop_before(self):
        r = spin(*self.args, "--stop-before", "10m", env={"SLURM_JOB_END_TIME": str(int(time.time()) + 60)})
        self.assertEqual(r.rc, STOPPED, f"\n{r}")
        self.assertFalse(os.path.exists(os.path.join(self.out, "manifest.json")))
        self.good(*self.args, ranks=2)
        self.assertEqual(self.whole(), tar_hashes(self.out))

    def test_terminate_saves(self):
        p = self.paused()
        p.send_signal(signal.SIGTERM)
        p.send_signal(signal.SIGCONT)
        r = finish(p)
        self.assertEqual(r.rc, STOPPED, f"\n{r}")
        self.good(*self.args, ranks=2)
        self.assertEqual(self.whole(), tar_hashes(self.out))

    def test_keep_run(self):
        self.good(*self.args, "--keep-run")
        self.assertTrue(os.path.isfile(os.path.join(self.out, "run", "state.json")))
        self.assertEqual(self.whole(), tar_hashes(self.out))


if __name__ == "__main__":
    main()
