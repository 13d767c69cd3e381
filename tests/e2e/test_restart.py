#!/usr/bin/env python3
"""An unfinished run: it is described by status, goes on with the same command, refuses another one, and has
one writer."""
import json
import os
import shutil
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import make_model  # noqa: E402
from spin import Case, finish, main, settings, spin, start, tar_hashes  # noqa: E402

MISMATCH, STOPPED = 7, 75
HOW = settings("weights.group=64")


class Restart(Case):
    def setUp(self):
        super().setUp()
        self.model = make_model.make(self.path("m"), "--layers", 4, "--untied")
        self.out = self.path("out")
        self.args = ["quantize", "--model", self.model, "--out", self.out, *HOW]

    def whole(self):
        ref = self.path("ref")
        self.good("quantize", "--model", self.model, "--out", ref, *HOW)
        return tar_hashes(ref)

    def unfinished(self):
        """Kill a run at ever later operations until it leaves a state behind."""
        for n in (30, 40, 60, 80, 100, 120, 140, 160, 180, 200):
            r = spin(*self.args, env={"SPINSHARD_FAULT": f"any:{n}:0:kill"})
            self.assertNotEqual(r.rc, 0, "the run came to its end before it kept any state")
            if os.path.isfile(os.path.join(self.out, "run", "state.json")):
                return
        self.fail("no run kept any state")

    def test_goes_on(self):
        self.unfinished()
        self.assertTrue(self.good("status", self.out).out.strip())
        self.assertIsInstance(self.good("status", self.out, "--json").json(), dict)
        self.good(*self.args, ranks=3)
        self.assertEqual(self.whole(), tar_hashes(self.out))
        self.assertFalse(os.path.exists(os.path.join(self.out, "run")))
        with open(os.path.join(self.out, "events.jsonl")) as f:
            slices = {json.loads(line)["slice"] for line in f if line.startswith("{") and line.endswith("}\n")}
        self.assertGreater(max(slices), 0)

    def test_refuses_another_recipe(self):
        self.unfinished()
        self.bad(MISMATCH, ["recipe|seed"], *self.args, "--seed", 99, out=self.out)
        self.bad(MISMATCH, ["recipe|symmetric"], *self.args, "--set", "weights.symmetric=false", out=self.out, ranks=2)
        self.good(*self.args)
        self.assertEqual(self.whole(), tar_hashes(self.out))

    def test_refuses_another_model(self):
        self.unfinished()
        other = make_model.make(self.path("other"), "--layers", 5, "--untied")
        self.bad(MISMATCH, ["config|header|model"], "quantize", "--model", other, "--out", self.out, *HOW, out=self.out)

    def test_refuses_changed_weights(self):
        """Same config and headers, other numbers: the hashes of the tensors tell."""
        self.unfinished()
        other = make_model.make(self.path("other"), "--layers", 4, "--untied", "--seed", 2)
        for name in os.listdir(other):
            shutil.copy(os.path.join(other, name), os.path.join(self.model, name))
        r = spin(*self.args)
        self.assertIn(r.rc, (3, MISMATCH), f"\n{r}")
        self.assertFalse(os.path.exists(os.path.join(self.out, "manifest.json")))

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

    def test_stop_before(self):
        r = spin(*self.args, "--stop-before", "0s")
        self.assertEqual(r.rc, STOPPED, f"\n{r}")
        self.assertFalse(os.path.exists(os.path.join(self.out, "manifest.json")))
        self.good(*self.args, ranks=2)
        self.assertEqual(self.whole(), tar_hashes(self.out))

    def test_terminate_saves(self):
        p = start(self.args, ranks=2)
        time.sleep(0.6)
        p.send_signal(signal.SIGTERM)
        r = finish(p)
        if r.rc:
            self.good(*self.args, ranks=2)
        self.assertEqual(self.whole(), tar_hashes(self.out))

    def test_keep_run(self):
        self.good(*self.args, "--keep-run")
        self.assertTrue(os.path.isfile(os.path.join(self.out, "run", "state.json")))
        self.assertEqual(self.whole(), tar_hashes(self.out))


if __name__ == "__main__":
    main()
