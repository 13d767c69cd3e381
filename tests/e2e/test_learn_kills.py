#!/usr/bin/env python3
"""SIGKILL of random ranks while rotations are learned: the same command goes on to the same bytes, and nothing
hangs. One test on the model that is shipped, one on a made model of wider layers, not tied.

SPINSHARD_KILLS: how many kills on each model (8). SPINSHARD_KILL_SEED: the seed of their times and ranks (1).
A kill comes at a step drawn uniformly over the phases and then over the steps of the phase, a random moment after
its event; one in ten comes before learning has kept anything. Prints a histogram.
"""
import collections
import os
import random
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import make_model  # noqa: E402
from kills import Tail, events, kill_a_rank  # noqa: E402
from spin import STORIES, TEXT, Case, main, result_hashes, settings, spin, start  # noqa: E402

KILLS = int(os.environ.get("SPINSHARD_KILLS", "8"))
SEED = int(os.environ.get("SPINSHARD_KILL_SEED", "1"))
A_RUN = 5  # kills of one run, then it comes to its end
PARTS = 5  # of the steps of a phase, in the histogram
BEFORE = ("load", "capture", "start")
RANGE = "{objective: range, steps: %d, rows: 4096}"
CE = "{objective: ce, steps: %d, batch: 2, window: 64}"


class LearnKills(Case):
    def how(self, model, text, phases):
        return ["quantize", "--model", model, "--calib", text,
                *settings("calib.windows=8", "calib.window=128", "rotate.start=pca", "activations.bits=4", "kv.bits=4",
                          "rotate.online=[r3]", "learn=[%s]" % ", ".join(form % n for form, n in phases))]

    def losses(self, out):
        """Loss of each step; a step that was done again must have had the same one."""
        seen = {}
        for e in events(out):
            if e["event"] == "step":
                key = (e["phase"], e["step"])
                self.assertEqual(seen.setdefault(key, e["loss"]), e["loss"], key)
        return seen

    def targets(self, rng, phases, early):
        """Moments of one run, in order: (phase, step), and first, where that is wanted, before the first commit."""
        drawn = []
        for _ in range(A_RUN):
            phase = rng.randrange(len(phases))
            drawn.append((phase, rng.randint(0, phases[phase][1] - 1)))
        if early:
            drawn[0] = (-1, 0)
        return sorted(drawn)

    def run_until(self, args, out, target, rng, step_s):
        """Start, and kill a rank once the run is past the target; gives the result and where it was."""
        p, tail, at = start(args, ranks=rng.choice((2, 3, 4))), Tail(out), ("before", 0)
        committed = False
        deadline = time.monotonic() + 100
        while p.poll() is None and time.monotonic() < deadline:
            reached = False
            for e in tail.new():
                if e["phase"].startswith("learn."):
                    at = (e["phase"], e.get("step", 0))
                    here = (int(e["phase"][6:]), e.get("step", 0))
                    reached |= here >= target
                elif e["phase"] in BEFORE:
                    reached |= target[0] < 0 and e["event"] == "end"
                else:
                    reached = True
                    at = (e["phase"], 0)
                committed |= e["event"] == "commit"
            if reached:
                time.sleep(rng.uniform(0, 2 * step_s if target[0] >= 0 else 0.05))
                break
            time.sleep(0.0005)
        for e in tail.new():
            if e["event"] == "step":
                at = (e["phase"], e["step"])
        return kill_a_rank(p, rng), at

    def kills_on(self, model, text, phases):
        rng = random.Random(SEED)
        how = self.how(model, text, phases)
        ref = self.path("ref")
        begin = time.monotonic()
        self.good(*how, "--out", ref, ranks=3)
        seconds = time.monotonic() - begin
        want, want_losses = result_hashes(ref), self.losses(ref)
        self.assertEqual(len(want_losses), sum(n for _, n in phases))
        times = [e["t"] for e in events(ref) if e["event"] == "step"]
        step_s = (times[-1] - times[0]) / len(times)
        histogram, kills, after, rounds = collections.Counter(), 0, 0, 0
        while kills < KILLS:
            rounds += 1
            out = self.path(f"out{rounds}")
            args = [*how, "--out", out]
            early = rounds % 2 == 0  # one kill in ten
            for target in self.targets(rng, phases, early)[:KILLS - kills]:
                r, (phase, step) = self.run_until(args, out, target, rng, step_s)
                if r.rc == 0:
                    break  # it came to its end before the kill
                kills += 1
                steps = dict((f"learn.{k}", n) for k, (_, n) in enumerate(phases)).get(phase)
                after += phase != "before"
                histogram[phase if not steps else f"{phase} {PARTS * min(step, steps - 1) // steps + 1}/{PARTS}"] += 1
            if not os.path.exists(os.path.join(out, "manifest.json")) or os.path.exists(os.path.join(out, "run")):
                self.good(*args, ranks=rng.choice((0, 1, 2, 3)))
            self.assertEqual(want, result_hashes(out), f"round {rounds}")
            self.assertEqual(want_losses, self.losses(out), f"round {rounds}")
        print(f"\n{kills} kills in {rounds} runs, {after} of them ({100 * after / kills:.0f} %) after the first commit "
              f"of learning; a whole run takes {seconds:.1f} s, a step {1e3 * step_s:.1f} ms; phase and part of its steps:")
        for name in sorted(histogram):
            print(f"  {name:12s} {histogram[name]:3d} {'#' * histogram[name]}")
        self.assertGreaterEqual(after, 0.8 * kills)

    def phases(self, range_steps, ce_steps):
        ce = [(CE, ce_steps)]
        args = [*self.how(STORIES, TEXT, ce), "--out", self.path("dry"), "--dry-run"]
        known = spin(*args).rc == 0
        return [(RANGE, range_steps), *(ce if known else [])]

    def test_shipped_model(self):
        self.kills_on(STORIES, TEXT, self.phases(100, 6))

    def test_made_model(self):
        model = make_model.make(self.path("m"), "--intermediate", 352, "--layers", 4, "--untied")
        self.kills_on(model, TEXT, self.phases(300, 20))


if __name__ == "__main__":
    main()
