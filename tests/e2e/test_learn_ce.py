#!/usr/bin/env python3
"""Learning end to end (ce, kl-top): the same bytes on any ranks and layouts, over kills and stops; the loss falls;
what cannot be is refused; the plan is told without work."""
import json
import os
import random
import re
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import make_model  # noqa: E402
from kills import events  # noqa: E402
from spin import STORIES, TEXT, Case, finish, main, settings, sha256, spin, start, tar_hashes  # noqa: E402

SCALES = "scale.pairs=[norm, vo, qk, ud]"
W4A4 = ("activations.bits=4", "kv.bits=4", "rotate.online=[r3]")


def phase(objective="ce", steps=3, batch=3, window=48, **more):
    words = ", ".join(f"{k}: {v}" for k, v in more.items())
    return "{objective: %s, steps: %d, batch: %d, window: %d%s}" % (objective, steps, batch, window, words and ", " + words)


def how(*phases, more=()):
    return ["--calib", TEXT, *settings("calib.windows=4", "calib.window=96", "rotate.start=had", "numerics.slice_tokens=20",
                                       *W4A4, "learn=[%s]" % ", ".join(phases), *more)]


def hashes(out):
    return {**tar_hashes(out), "rotations": sha256(os.path.join(out, "rotations.safetensors"))}


def steps_of(out):
    return {(e["phase"], e["step"]): e for e in events(out) if e["event"] == "step"}


def losses(out):
    return {k: (e["loss"], e["angle_r1"], e["angle_r2"]) for k, e in steps_of(out).items()}


LAYOUTS = [(0, 1, ()), (1, 3, ("--recompute", "on")), (2, 1, ("--replicas", 2)), (2, 1, ("--stages", 2)),
           (3, 1, ()), (4, 1, ("--replicas", 2, "--stages", 2, "--recompute", "on")), (4, 1, ("--stages", 4))]


class LearnCe(Case):
    def same_on_all(self, name, args, model=STORIES, layouts=LAYOUTS):
        first = None
        for i, (ranks, threads, flags) in enumerate(layouts):
            out = self.path(f"{name}{i}")
            self.good("quantize", "--model", model, "--out", out, *args, *flags, ranks=ranks, threads=threads)
            got = (hashes(out), losses(out))
            first = first or got
            self.assertEqual(first, got, f"{ranks} ranks, {threads} threads, {flags}")
        return out, first

    def test_ranks(self):
        out, (_, got) = self.same_on_all("c", how(phase(steps=4), more=("seed=3",)))
        self.assertEqual(len(got), 4)
        for e in steps_of(out).values():
            self.assertGreater(e["tokens_per_s"], 0)
            self.assertTrue(0 < e["peak_share"] < 2, e)
            self.assertLess(e["orth"], 1e-12)

    def test_kl_and_chains(self):
        loop = how(phase("kl-top", top_k=50, weights="true", lr_scale=0.02), more=("scale.pairs=[norm, vo, ud]",))
        self.same_on_all("k", loop, layouts=LAYOUTS[:1] + LAYOUTS[3:6])
        chain = how("{objective: range, steps: 5, rows: 256}", phase(steps=2, range_grad="detached"),
                    "{objective: range, steps: 5, rows: 256}", phase("kl-top", steps=2, optimizer="sgd-published", lr_r1=1.5))
        self.same_on_all("m", chain, layouts=LAYOUTS[:1] + LAYOUTS[3:5])

    def test_heads_and_biases(self):
        model = make_model.make(self.path("m"), "--biases")
        out, _ = self.same_on_all("h", how(phase(lr_scale=0.02), more=("rotate.r2=head", "rotate.online=[r3, r4]", SCALES)), model,
                                  LAYOUTS[:1] + LAYOUTS[3:4])
        self.good("verify", out, "--source", model, "--equivalence", ranks=2)
        conditions = [e["condition"] for e in steps_of(out).values()]
        self.assertTrue(1 < conditions[0] < conditions[-1] < 4096, conditions)  # from ones, and bounded

    def test_the_loss_falls(self):
        """The distance to the model in full precision, each step on all windows, so that losses compare. From R1 = I on a
        model with loud channels it falls to some 0.4 of what it was."""
        model, r1 = self.loud_model()
        out, steps = self.path("f"), 60
        self.good("quantize", "--model", model, "--out", out,
                  *how(phase("kl-top", steps=steps, batch=4, window=96, top_k=512), more=(f"rotate.start={r1}",)),
                  ranks=2)
        got = losses(out)
        first, last = got["learn.0", 1][0], sum(got["learn.0", i][0] for i in range(steps - 4, steps + 1)) / 5
        self.assertGreater(first, 0)
        self.assertLess(last, 0.7 * first)

    def test_r2_from_the_identity(self):
        """rotate.start=identity: there is no R1, and R2 is learned from there."""
        out = self.path("i")
        self.good("quantize", "--model", STORIES, "--out", out, *how(phase(), more=("rotate.start=identity",)))
        self.assertGreater(min(e["angle_r2"] for e in steps_of(out).values()), 0)

    def test_kills_and_stops(self):
        args = how(phase(steps=60, lr_scale=0.01), phase("kl-top", steps=10, top_k=20, lr_scale=0.01), more=(SCALES,))
        want_out = self.path("want")
        self.good("quantize", "--model", STORIES, "--out", want_out, *args, ranks=2)
        want, draw = hashes(want_out), random.Random(7)
        for kind in (signal.SIGKILL, signal.SIGTERM):
            out, slices = self.path(f"got{int(kind)}"), 0
            for _ in range(40):
                flags = draw.choice(((), ("--recompute", "on")))
                p = start(["quantize", "--model", STORIES, "--out", out, *args, *flags], ranks=draw.choice((1, 2, 3)))
                if slices < 5:
                    time.sleep(0.4 + draw.random())
                    os.killpg(p.pid, kind) if kind == signal.SIGKILL else p.terminate()
                r = finish(p)
                slices += 1
                if r.rc == 0:  # the kill came after the end
                    break
                if kind == signal.SIGKILL:
                    time.sleep(0.3)
            self.assertTrue(os.path.exists(os.path.join(out, "manifest.json")), r)
            self.assertEqual(want, hashes(out), f"after {slices} slices")
            done = [k for k, _ in sorted(steps_of(out).items())]
            self.assertEqual(len(done), 70, "every step, each under one number")

    def test_plan(self):
        out = self.path("p")
        r = self.good("quantize", "--model", STORIES, "--out", out, "--dry-run", *how(phase()), "--stages", 2, ranks=2)
        self.assertRegex(r.err, r"learn\.0: 1 replicas x 2 stages.*3 slices of 20 tokens.*waiting, simulated: \d+ %")
        self.assertFalse(os.path.exists(out))
        r = self.good("quantize", "--model", STORIES, "--out", out, "--dry-run", *how(phase(batch=2)), "--replicas", 3, ranks=4)
        self.assertTrue(re.search(r"2 replicas.*2 ranks are idle", r.err), r)

    def test_passes(self):
        """A batch passes once a step, twice at the first, and once for each look at held-out windows: as planned. Steps of
        sgd-published are not judged; those of range are."""
        chain = how(phase(steps=3), phase("kl-top", steps=5, top_k=20, weights="true"),
                    phase(steps=2, optimizer="sgd-published", lr_r1=0.1), "{objective: range, steps: 9, rows: 256}")
        planned = self.good("plan", "--model", STORIES, "--json", *chain).json()["phases"]
        got = {p["phase"]: (p["passes"], p["looks"]) for p in planned if p["phase"].startswith("learn")}
        self.assertEqual(got, {"learn.0": (8, 4), "learn.1": (11, 5), "learn.2": (3, 0), "learn.3": (0, 6)})
        out = self.path("e")
        self.good("quantize", "--model", STORIES, "--out", out, *chain, ranks=2)
        seen = events(out)
        for name, (passes, looks) in got.items():
            self.assertEqual(sum(e["event"] == "held" and e["phase"] == name for e in seen), looks, name)
            end = [e for e in seen if e["event"] == "end" and e["phase"] == name][0]
            self.assertEqual((end.get("passes", 0), end.get("planned_passes", 0)), (passes, passes), name)

    def test_bad_input(self):
        for args, code, says in (
                (how(phase(window=97)), 2, "calib.window"),
                ([*how(phase()), "--stages", 9], 2, "9 stages for 5 layers"),
                ([*how(phase()), "--replicas", 3], 2, "3 replicas"),
                ([*how(phase()), "--recompute", "maybe"], 2, "auto, on or off"),
                ([*how(phase()), "--mem", "300K"], 6, "on rank "),
                (how(phase(), more=("activations.bits=16", "kv.bits=16")), 2, "nothing to learn"),
                (how(phase(), more=("scale.pairs=[ud]",)), 2, "no phase learns them")):
            with self.subTest(says):
                out = self.path("bad")
                r = spin("quantize", "--model", STORIES, "--out", out, *args, ranks=2)
                self.assertEqual(r.rc, code, r)
                self.assertEqual(len(r.errors()), 1, r)
                self.assertIn(says, r.err)
                self.assertFalse(os.path.exists(os.path.join(out, "manifest.json")))


if __name__ == "__main__":
    main()
