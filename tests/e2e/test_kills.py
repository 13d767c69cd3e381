#!/usr/bin/env python3
"""SIGKILL of random ranks at random moments: the same command goes on to the same bytes, and nothing hangs.

SPINSHARD_KILLS: how many kills (8). SPINSHARD_KILL_SEED: the seed of their times and ranks (1). Of four kills,
two come shortly after the start of a phase drawn at random, so that the short ones get their share, one at a
random operation on a file, and one at a random time. Prints in which phase the run was each time.
"""
import collections
import os
import random
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import make_model  # noqa: E402
from kills import kill_a_rank, last_phase  # noqa: E402
from spin import Case, main, result_hashes, settings, spin, start  # noqa: E402

KILLS = int(os.environ.get("SPINSHARD_KILLS", "8"))
SEED = int(os.environ.get("SPINSHARD_KILL_SEED", "1"))
RANKS = 3
PHASES = ("load", "round", "pack", "verify")
HOW = settings("weights.group=64", "weights.scale=search", "archive.shard_bytes=1M")  # some seconds of search


class Kills(Case):
    def kill_by_time(self, args, rng, seconds):
        p = start(args, ranks=RANKS)
        time.sleep(rng.uniform(0, seconds))
        return kill_a_rank(p, rng)

    def kill_by_phase(self, args, rng, out):
        phase = rng.choice(PHASES)
        p = start(args, ranks=RANKS)
        while p.poll() is None and last_phase(out) != phase:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        return kill_a_rank(p, rng)

    def kill_by_operation(self, args, rng, operations):
        rank = rng.randrange(RANKS)
        n = rng.randint(1, operations[rank])
        return spin(*args, ranks=RANKS, env={"SPINSHARD_FAULT": f"any:{n}:{rank}:kill"})

    def operations(self, model):
        """For each rank a count of operations on files, between one and two times those of a whole run."""
        counts = []
        for rank in range(RANKS):
            n, died = 16, True
            while died:
                n *= 2
                args = ["quantize", "--model", model, "--out", self.path(f"probe{rank}-{n}"), *HOW]
                died = spin(*args, ranks=RANKS, env={"SPINSHARD_FAULT": f"any:{n}:{rank}:kill"}).rc != 0
            counts.append(n)
        return counts

    def test_kills(self):
        rng = random.Random(SEED)
        model = make_model.make(self.path("m"), "--hidden", 256, "--intermediate", 768, "--layers", 16,
                                "--dtype", "BF16")
        ref = self.path("ref")
        begin = time.monotonic()
        self.good("quantize", "--model", model, "--out", ref, *HOW, ranks=RANKS)
        seconds = time.monotonic() - begin
        want = result_hashes(ref)
        operations = self.operations(model)
        histogram, kills, resumed, round_ = collections.Counter(), 0, 0, 0
        while kills < KILLS:
            round_ += 1
            out = self.path(f"out{round_}")
            args = ["quantize", "--model", model, "--out", out, *HOW]
            for attempt in range(6):
                last = attempt == 5 or kills >= KILLS
                if last:
                    r = self.good(*args, ranks=rng.choice((1, 2, RANKS)))
                elif kills % 4 == 1:
                    r = self.kill_by_operation(args, rng, operations)
                elif kills % 4 == 3:
                    r = self.kill_by_time(args, rng, seconds)
                else:
                    r = self.kill_by_phase(args, rng, out)
                if r.rc == 0:
                    break
                kills += 1
                resumed += attempt > 0
                histogram[last_phase(out)] += 1
                if os.path.exists(os.path.join(out, "manifest.json")):
                    break  # killed after completion: what is there must be whole
            self.assertEqual(want, result_hashes(out), f"round {round_}")
            self.good("verify", out)
        print(f"{kills} kills in {round_} runs, {resumed} of them of a run that had been killed before; "
              f"a whole run takes {seconds:.1f} s and operations {operations}; phase: {dict(histogram)}")


if __name__ == "__main__":
    main()
