#!/usr/bin/env python3
"""A stop that is asked for between two units of any phase ends the run there with 75, soon, and the same bytes come out."""
import os
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
from kills import events, processes_below  # noqa: E402
from spin import STORIES, TEXT, Case, finish, main, result_hashes, settings, start  # noqa: E402

HOW = ["--model", STORIES, "--recipe", "scales-w4a4kv4", "--calib", TEXT,
       *settings("weights.group=channel", "weights.method=gptq", "rotate.online=[r3]", "calib.window=64", "calib.windows=4",
                 "learn=[{objective: range, steps: 2, rows: 256}]")]


def stopped(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] == "T"
    except OSError:
        return False


class Stops(Case):
    def stop_at(self, out, unit, ranks):
        """Ask rank 0 to end while it is between units, for the n-th time of this start; None: it came to its end."""
        p = start(["quantize", "--out", out, *HOW], ranks=ranks, env={"SPINSHARD_FAULT": f"unit:{unit}:0:stop"})
        while p.poll() is None:
            for pid in [p.pid, *processes_below(p.pid)]:
                if stopped(pid):
                    os.kill(pid, signal.SIGTERM)
                    os.kill(pid, signal.SIGCONT)
                    return finish(p)
            time.sleep(0.005)
        self.assertEqual(finish(p).rc, 0)
        return None

    def test_each_phase(self):
        """The n-th start is stopped at its n-th unit, so that each comes further than the one before."""
        want, out, phases = self.path("want"), self.path("got"), set()
        self.good("quantize", "--out", want, *HOW)
        for unit in range(1, 60):
            before = len(events(out))
            r = self.stop_at(out, unit, 2 * (unit % 5 == 2))
            if r is None:
                break
            self.assertEqual(r.rc, 75, r)
            *_, last, end = events(out)[before:]
            self.assertEqual((end["event"], end["exit"]), ("stop", 75))
            phases.add(last["phase"])
        self.assertIsNone(r, "it did not come to its end")
        self.assertLessEqual({"capture", "start", "learn.0", "scales", "gptq", "pack"}, phases)
        self.assertEqual(result_hashes(want), result_hashes(out))


if __name__ == "__main__":
    main()
