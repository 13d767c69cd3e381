#!/usr/bin/env python3
"""Learned rotations: the same bytes on any number of ranks, over kills, stops and restarts; better than the
random start on the model they are learned for; bad input refused."""
import json
import os
import random
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import make_model  # noqa: E402
from spin import STORIES, TEXT, Case, finish, main, settings, sha256, start, tar_hashes  # noqa: E402

LAYOUTS = [(0, 1), (1, 2), (2, 1), (3, 1), (4, 1)]
W4A4 = ("activations.bits=4", "kv.bits=4", "rotate.online=[r3]")


def how(steps, rows=512, more=(), start_point="pca"):
    return ["--calib", TEXT, *settings("calib.windows=4", "calib.window=96", f"rotate.start={start_point}", *W4A4,
                                       "learn=[{objective: range, steps: %d, rows: %d}]" % (steps, rows), *more)]


def hashes(out):
    return {**tar_hashes(out), "rotations": sha256(os.path.join(out, "rotations.safetensors"))}


def losses(out):
    with open(os.path.join(out, "events.jsonl")) as f:
        events = [json.loads(line) for line in f if line.startswith("{")]
    return {e["step"]: (e["loss"], e["loss_r2"]) for e in events if e["event"] == "step"}


class Learn(Case):
    def test_ranks(self):
        first = None
        for ranks, threads in LAYOUTS:
            out = self.path(f"r{ranks}-{threads}")
            self.good("quantize", "--model", STORIES, "--out", out, *how(30), ranks=ranks, threads=threads)
            got = (hashes(out), losses(out))
            first = first or got
            self.assertEqual(first, got, f"{ranks} ranks, {threads} threads")
        self.assertEqual(len(first[1]), 30)

    def test_heads_and_optimisers(self):
        model = make_model.make(self.path("m"), "--biases")
        for more in (("rotate.r2=head",), ("activations.symmetric=true",), ("activations.bits=16",), ("kv.bits=16",)):
            with self.subTest(more):
                got = set()
                for ranks in (1, 3):
                    out = self.path(f"h{more[0]}{ranks}")
                    self.good("quantize", "--model", model, "--out", out, "--force", *how(5, more=more), ranks=ranks)
                    got.add(json.dumps(hashes(out)))
                self.assertEqual(len(got), 1)
                self.good("verify", out, "--source", model, "--equivalence", ranks=2)

    def test_better_than_the_start(self):
        """Its own loss falls, and so does what it is there for: the distance to the model in full precision."""
        out = self.path("falls")
        self.good("quantize", "--model", STORIES, "--out", out, *how(300, 2048, start_point="had"), ranks=2)
        got = losses(out)
        self.assertLess(got[300][0], 0.9 * got[1][0])
        model, r1 = self.loud_model()
        kl = {steps: self.learned_kl(model, r1, steps, *W4A4) for steps in (1, 100)}
        self.assertGreater(kl[1], 0)
        self.assertLess(kl[100], 0.7 * kl[1])

    def test_kills_and_stops(self):
        want_out = self.path("want")
        self.good("quantize", "--model", STORIES, "--out", want_out, *how(400), ranks=2)
        want, draw = hashes(want_out), random.Random(5)
        for kind in (signal.SIGKILL, signal.SIGTERM):
            out, slices = self.path(f"got{int(kind)}"), 0
            for _ in range(40):
                p = start(["quantize", "--model", STORIES, "--out", out, *how(400)], ranks=draw.choice((1, 2, 3)))
                if slices < 6:
                    time.sleep(0.4 + draw.random())
                    os.killpg(p.pid, kind) if kind == signal.SIGKILL else p.terminate()
                r = finish(p)
                slices += 1
                if r.rc == 0:  # the kill came after the end
                    break
                if kind == signal.SIGKILL:
                    time.sleep(0.3)  # ranks that were not in the launcher's group go by themselves
            self.assertTrue(os.path.exists(os.path.join(out, "manifest.json")), r)
            self.assertEqual(want, hashes(out), f"after {slices} slices")

    def test_bad_input(self):
        for more, code, says in (
                ([*settings("learn=[{objective: range}]", *W4A4)], 2, "none is given"),
                (["--calib", TEXT, *settings("learn=[{objective: ce}]")], 2, "nothing to learn"),
                (how(5, more=("calib.window=100000",)), 3, "tokens"),
                (["--calib", TEXT, *settings("learn=[{objective: ragne}]", *W4A4)], 2, "range|ce|kl-top"),
                (["--calib", TEXT, *settings("learn=[{step: 3}]", *W4A4)], 2, "steps"),
                (["--calib", os.path.join(STORIES, "none.txt"), *settings("learn=[{objective: range}]", *W4A4)], 3, "none.txt")):
            with self.subTest(says):
                out = self.path("bad")
                r = self.spin_bad(*["quantize", "--model", STORIES, "--out", out, *more], ranks=2)
                self.assertEqual(r.rc, code, r)
                self.assertEqual(len(r.errors()), 1, r)
                self.assertIn(says, r.err)
                self.assertFalse(os.path.exists(os.path.join(out, "manifest.json")))

    def spin_bad(self, *args, ranks):
        return finish(start(args, ranks=ranks))


if __name__ == "__main__":
    main()
