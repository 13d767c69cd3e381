#!/usr/bin/env python3
"""A stop that is asked for between two units of any phase ends the run there with 75, soon, and the same bytes come out."""
import os
import random
import signal
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
from kills import events  # noqa: E402
from spin import STORIES, TEXT, Case, finish, main, result_hashes, settings, spin, start  # noqa: E402

HOW = ["--model", STORIES, "--recipe", "scales-w4a4kv4", "--calib", TEXT,
       *settings("weights.group=channel", "weights.method=gptq", "rotate.online=[r3]", "calib.window=64", "calib.windows=4",
                 "learn=[{objective: range, steps: 2, rows: 256}]")]


class Stops(Case):
    def test_each_phase(self):
        """The n-th start is stopped at its n-th unit, so that each comes further than the one before."""
        want, out, phases = self.path("want"), self.path("got"), set()
        self.good("quantize", "--out", want, *HOW)
        for unit in range(1, 60):
            before = len(events(out))
            r = spin("quantize", "--out", out, *HOW, ranks=2 * (unit % 5 == 2), env={"SPINSHARD_FAULT": f"unit:{unit}:0:term"})
            if r.rc == 0:
                break
            self.assertEqual(r.rc, 75, r)
            *_, last, end = events(out)[before:]
            self.assertEqual((end["event"], end["exit"]), ("stop", 75))
            phases.add(last["phase"])
        self.assertEqual(r.rc, 0, "it did not come to its end")
        self.assertLessEqual({"capture", "start", "learn.0", "scales", "gptq", "pack"}, phases)
        self.assertEqual(result_hashes(want), result_hashes(out))

    def test_random_kills(self):
        """SIGKILL at random calls of the file system and between random units, of random ranks, with other ranks, threads
        and memory at each start: the same bytes, no hang, nobody left behind. SPINSHARD_KILLS=300 does more than CI."""
        draw, wanted, kills, phases, chain = random.Random(3), int(os.environ.get("SPINSHARD_KILLS", "16")), 0, set(), 0
        want = self.path("want")
        self.good("quantize", "--out", want, *HOW)
        while kills < wanted:
            out, chain = self.path(f"killed{chain}"), chain + 1
            for _ in range(100):
                ranks = draw.choice((0, 0, 0, 2, 3))
                kind, most = draw.choice((("any", 150), ("unit", 14)))
                mem = draw.choice(([], ["--mem", "200M"]))
                fault = f"{kind}:{draw.randrange(10 ** 6)}/{most}:{draw.randrange(max(1, ranks))}:kill"
                p = start(["quantize", "--out", out, *HOW, *mem], ranks=ranks, threads=draw.choice((1, 2)),
                          env={"SPINSHARD_FAULT": fault})
                r = finish(p, 60)
                if r.rc == 0:
                    break
                self.assertIn(r.rc, (-signal.SIGKILL, 128 + signal.SIGKILL, 9), r)
                seen, kills = events(out), kills + 1
                phases |= {seen[-1]["phase"]} if seen else set()
            self.assertEqual(r.rc, 0, r)
            self.assertEqual(result_hashes(want), result_hashes(out), f"after {kills} kills")
        print(f"{kills} kills in {chain} runs, last seen in {', '.join(sorted(phases))}", file=sys.stderr)
        self.assertGreaterEqual(len(phases), 3)


if __name__ == "__main__":
    main()
