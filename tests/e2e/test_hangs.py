#!/usr/bin/env python3
"""A rank that stops in any phase is named with host and phase and ends the run with 9; a killed one is named where the
launcher leaves the time. The next start goes on, and the same bytes come out."""
import collections
import os
import random
import re
import signal
import socket
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
from kills import ranks_of  # noqa: E402
from spin import STORIES, TEXT, Case, finish, main, result_hashes, settings, spin, start  # noqa: E402

STOPS = int(os.environ.get("SPINSHARD_STOPS", "0"))
LOST = 9
AFTER = 3  # seconds of silence; 2 is the least, 3 leaves a busy machine some room
HOW = ["--model", STORIES, "--recipe", "scales-w4a4kv4", "--calib", TEXT,
       *settings("weights.group=channel", "weights.method=gptq", "rotate.online=[r3]", "calib.window=64", "calib.windows=4",
                 "learn=[{objective: range, steps: 2, rows: 256}]")]


class Hangs(Case):
    def stop(self, out, fault, ranks):
        """The result of a start in which a rank is stopped, and the phase in which it was missed; neither where it was
        through before its time came."""
        rank = int(fault.rsplit(":", 1)[1])
        begin = time.monotonic()
        r = spin("quantize", "--out", out, *HOW, "--lost-after", f"{AFTER}s", ranks=ranks,
                 env={"SPINSHARD_FAULT": fault + ":stop"}, limit=120)
        if r.rc == 0:
            return r, None
        self.assertEqual(r.rc, LOST, r)
        if ranks == 2:  # of more, several may miss the first rank at once
            self.assertEqual(len(r.errors()), 1, r)
        named = re.search(r"error: (\S+): rank (\d+) on (\S+) was not heard", r.err)
        self.assertTrue(named, r)
        self.assertEqual((int(named[2]), named[3]), (rank, socket.gethostname()), r)
        if STOPS:
            print(f"{fault} of {ranks} ranks: {named[1]}, {time.monotonic() - begin:.1f} s in all", file=sys.stderr, flush=True)
        return r, named[1]

    def test_stopped(self):
        """Each start comes to the next phase, where a rank is stopped and the others say so. A start that finds all layers
        writes on rank 1 only while it packs."""
        want, out = self.path("want"), self.path("got")
        self.good("quantize", "--out", want, *HOW)
        for fault, phase in (("unit:1:0", "capture"), ("unit:2:1", "capture"), ("unit:3:0", "learn.0"), ("unit:4:1", "scales"),
                             ("unit:6:0", "sites"), ("unit:8:1", "gptq"), ("write:1:1", "pack")):
            r, seen = self.stop(out, fault, 2)
            self.assertEqual(seen, phase, r)
        self.good("quantize", "--out", out, *HOW, ranks=3)
        self.assertEqual(result_hashes(want), result_hashes(out))

    def test_random(self):
        """At random calls of the file system and between random units, of random ranks. SPINSHARD_STOPS=40 does more than CI, and
        has a line for each."""
        draw = random.Random(int(os.environ.get("SPINSHARD_STOP_SEED", "5")))
        wanted, stops, runs, phases = STOPS or 1, 0, 0, collections.Counter()
        want = self.path("want")
        self.good("quantize", "--out", want, *HOW)
        while stops < wanted:
            out, runs, more = self.path(f"stopped{runs}"), runs + 1, True
            while more and stops < wanted:
                ranks = draw.choice((2, 2, 3))
                kind, most = draw.choice((("any", 150), ("unit", 14)))
                r, seen = self.stop(out, f"{kind}:{draw.randrange(10 ** 6)}/{most}:{draw.randrange(ranks)}", ranks)
                more = r.rc != 0
                stops += more
                phases[seen] += more
            self.good("quantize", "--out", out, *HOW)  # also where it is complete
            self.assertEqual(result_hashes(want), result_hashes(out))
        print(f"{stops} stops in {runs} runs, the same bytes each time; by phase {dict(+phases)}", file=sys.stderr)

    def test_suspended_whole(self):
        """All ranks stopped for longer than a lost one is given, as by a scheduler that suspends the job: it goes on."""
        for lost_after, pause in ((5, 6), (2, 3)):
            with self.subTest(lost_after=lost_after):
                self.suspend(f"out{pause}", lost_after, pause)

    def suspend(self, name, lost_after, pause):
        p = start(["quantize", "--out", self.path(name), *HOW, "--lost-after", f"{lost_after}s"], ranks=2,
                  env={"SPINSHARD_FAULT": "unit:3:1:stop"})
        pids = {}
        while len(pids) < 2 or not all(self.stopped(pid) for r, pid in pids.items() if r == 1):
            self.assertIsNone(p.poll())
            pids = ranks_of(p.pid)
            time.sleep(0.02)
        os.kill(pids[0], signal.SIGSTOP)
        time.sleep(pause)
        for pid in pids.values():
            os.kill(pid, signal.SIGCONT)
        r = finish(p)
        self.assertEqual(r.rc, 0, r)

    def test_too_soon(self):
        """Sooner than two beats nobody could tell a rank that hangs from one that waits for a core."""
        self.bad(2, "--lost-after: 1s is too soon: 2s or more", "quantize", "--out", self.path("out"), *HOW, "--lost-after", "1s")

    def stopped(self, pid):
        try:
            with open(f"/proc/{pid}/stat") as f:
                return f.read().rsplit(")", 1)[1].split()[0] == "T"
        except OSError:
            return False


if __name__ == "__main__":
    main()
