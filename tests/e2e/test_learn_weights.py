#!/usr/bin/env python3
"""Rotations learned for weights of few bits (rows of weights in range, weights in the loop of ce), and the start
womi: the same bytes on any number of ranks, over a kill; better than the random start; womi without a text;
settings with nothing to learn refused."""
import json
import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import make_model  # noqa: E402
from spin import STORIES, TEXT, Case, finish, main, settings, sha256, start, tar_hashes  # noqa: E402

LAYOUTS = [(0, 1), (1, 2), (2, 1), (3, 1), (4, 1)]
CALIB = ("--calib", TEXT)


def how(steps, *more, rows=512):
    phase = "learn=[{objective: range, steps: %d, rows: %d}]" % (steps, rows)
    return [*CALIB, *settings("calib.windows=4", "calib.window=96", "weights.group=channel", phase, *more)]


def hashes(out):
    return {**tar_hashes(out), "rotations": sha256(os.path.join(out, "rotations.safetensors"))}


def losses(out):
    with open(os.path.join(out, "events.jsonl")) as f:
        events = [json.loads(line) for line in f if line.startswith("{")]
    return {e["step"]: (e["loss"], e["angle_r1"], e["angle_r2"]) for e in events if e["event"] == "step"}


class LearnWeights(Case):
    def same_on_ranks(self, model, args, layouts=LAYOUTS):
        first = None
        for ranks, threads in layouts:
            out = self.path(f"r{ranks}-{threads}")
            self.good("quantize", "--model", model, "--out", out, "--force", *args, ranks=ranks, threads=threads)
            got = (hashes(out), losses(out))
            first = first or got
            self.assertEqual(first, got, f"{ranks} ranks, {threads} threads")
        return first[1]

    def test_ranks(self):
        got = self.same_on_ranks(STORIES, how(25))
        self.assertEqual(len(got), 25)
        self.assertLess(got[25][0], 0.95 * got[1][0])

    def test_settings(self):
        model = make_model.make(self.path("m"), "--biases")
        both = "learn=[{objective: range, steps: 4, rows: 300, weights: true}]"
        for more in (("rotate.r2=head", "weights.group=32"), ("weights.symmetric=false", "rotate.r2=none"),
                     ("rotate.r1=false",), ("rotate.online=[r4]", "weights.bits=3"),
                     ("activations.bits=8", both), ("activations.bits=4", "kv.bits=4", "rotate.start=pca", both),
                     ("kv.bits=4", "rotate.r2=head", both)):
            with self.subTest(more):
                got = self.same_on_ranks(model, how(4, *more), [(1, 1), (3, 1)])
                self.assertEqual("rotate.r1=false" in more, got[4][1] == 0)
                self.assertEqual("rotate.r2=none" in more, got[4][2] == 0)
                self.good("verify", self.path("r3-1"), "--source", model, "--equivalence", ranks=2)

    def test_better_than_the_start(self):
        """Weights of 3 bits of a model whose weights have loud columns: nearer to the model in full precision."""
        model, r1 = self.loud_model(0.25)
        kl = {steps: self.learned_kl(model, r1, steps, "weights.bits=3", weights=True) for steps in (1, 100)}
        self.assertGreater(kl[1], 0)
        self.assertLess(kl[100], 0.75 * kl[1])

    def test_womi_needs_no_text(self):
        got = self.same_on_ranks(STORIES, settings("rotate.start=womi"), [(0, 1), (1, 2), (3, 1)])
        self.assertEqual(got, {})
        plain = self.path("had")
        self.good("quantize", "--model", STORIES, "--out", plain)
        self.assertNotEqual(hashes(plain)["rotations"], hashes(self.path("r3-1"))["rotations"])
        self.good("verify", self.path("r3-1"), "--source", STORIES, "--equivalence")
        self.same_on_ranks(STORIES, how(3, "rotate.start=womi", "rotate.r2=head"), [(1, 1), (2, 1)])

    def test_weights_in_the_loop_of_ce(self):
        """W4A16: nothing but the weights tells the rotations where to go; and with activations."""
        loop = "learn=[{objective: ce, steps: 3, batch: 2, window: 64, weights: true}]"
        model = make_model.make(self.path("m"), "--biases")
        for model, more in ((STORIES, (loop,)),
                            (STORIES, (loop, "rotate.r2=head", "activations.bits=4", "kv.bits=4", "rotate.online=[r3]")),
                            (model, (loop.replace("ce", "kl-top"), "weights.group=32", "weights.symmetric=false")),
                            (model, (loop, "activations.bits=8", "rotate.online=[r4]"))):
            with self.subTest(more):
                got = self.same_on_ranks(model, how(1, *more), [(0, 1), (1, 2), (2, 1), (3, 1)])
                self.assertEqual(len(got), 3)
                self.assertGreater(min(got[1][1:]), 0)
                self.good("verify", self.path("r3-1"), "--source", model, "--equivalence", ranks=2)

    def test_kill(self):
        want, out = self.path("want"), self.path("got")
        args = how(150)
        self.good("quantize", "--model", STORIES, "--out", want, *args, ranks=2)
        for attempt in range(8):
            p = start(["quantize", "--model", STORIES, "--out", out, *args], ranks=1 + attempt % 3)
            if attempt < 3:
                time.sleep(0.6 + 0.3 * attempt)
                p.terminate()
            r = finish(p)
            if r.rc == 0:
                break
        self.assertEqual(hashes(want), hashes(out))

    def test_nothing_to_learn(self):
        out = self.path("bad")
        r = finish(start(["quantize", "--model", STORIES, "--out", out,
                          *how(5, "rotate.r1=false", "rotate.r2=none")], ranks=2))
        self.assertEqual(r.rc, 2, r)
        self.assertIn("nothing to learn", r.err)


if __name__ == "__main__":
    main()
