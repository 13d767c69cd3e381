#!/usr/bin/env python3
"""A rank that stops in any phase is named with host and phase and ends the run with 9; a killed one is named where the
launcher leaves the time. The next start goes on, and the same bytes come out."""
import os
import re
import signal
import socket
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
from kills import ranks_of  # noqa: E402
from spin import STORIES, TEXT, Case, finish, main, result_hashes, settings, spin, start  # noqa: E402

LOST, STOPPED = 9, 75
HOW = ["--model", STORIES, "--calib", TEXT,
       *settings("activations.bits=4", "weights.group=channel", "weights.method=gptq", "calib.window=64", "calib.windows=4",
                 "learn=[{objective: range, steps: 2, rows: 256}]")]


class Hangs(Case):
    def test_stopped(self):
        """Rank 0 is stopped in the capture, rank 1 while it learns and in GPTQ; each time the other one says so. The units
        of a start: the first of 2 waves of windows, 2 steps, 5 layers."""
        want, out = self.path("want"), self.path("got")
        self.good("quantize", "--out", want, *HOW)
        for rank, unit, phase in ((0, 1, "capture"), (1, 2, "learn.0"), (1, 4, "gptq")):
            r = spin("quantize", "--out", out, *HOW, "--lost-after", "2s", ranks=2,
                     env={"SPINSHARD_FAULT": f"unit:{unit}:{rank}:stop"}, limit=60)
            self.assertEqual(r.rc, LOST, r)
            self.assertRegex(r.err, rf"error: {re.escape(phase)}: rank {rank} on {re.escape(socket.gethostname())} was not heard")
        self.good("quantize", "--out", out, *HOW, ranks=3)
        self.assertEqual(result_hashes(want), result_hashes(out))

    def test_suspended_whole(self):
        """All ranks stopped for longer than a lost one is given, as by a scheduler that suspends the job: it goes on."""
        out = self.path("out")
        p = start(["quantize", "--out", out, *HOW, "--lost-after", "5s"], ranks=2, env={"SPINSHARD_FAULT": "unit:3:1:stop"})
        pids = {}
        while len(pids) < 2 or not all(self.stopped(pid) for r, pid in pids.items() if r == 1):
            self.assertIsNone(p.poll())
            pids = ranks_of(p.pid)
            time.sleep(0.02)
        os.kill(pids[0], signal.SIGSTOP)
        time.sleep(6)
        for pid in pids.values():
            os.kill(pid, signal.SIGCONT)
        r = finish(p)
        self.assertEqual(r.rc, 0, r)

    def stopped(self, pid):
        try:
            with open(f"/proc/{pid}/stat") as f:
                return f.read().rsplit(")", 1)[1].split()[0] == "T"
        except OSError:
            return False


if __name__ == "__main__":
    main()
