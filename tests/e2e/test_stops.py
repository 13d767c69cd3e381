#!/usr/bin/env python3
"""A stop that is asked for between two units of any phase ends the run there with 75, soon, and the same bytes come out."""
import collections
import os
import random
import shutil
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
from kills import events  # noqa: E402
from spin import STORIES, TEXT, Case, finish, main, result_hashes, settings, spin, start  # noqa: E402

HOW = ["--model", STORIES, "--recipe", "scales-w4a4kv4", "--calib", TEXT,
       *settings("weights.group=channel", "weights.method=gptq", "rotate.online=[r3]", "calib.window=64", "calib.windows=4",
                 "learn=[{objective: range, steps: 2, rows: 256}]")]


MARK = "SPINSHARD_TEST_RUN"
LIMIT = int(os.environ.get("SPINSHARD_KILL_LIMIT", "120"))  # seconds of a run, after which it hangs


def left_behind(value):
    """Processes that have the mark of a run though it has ended; they are given a moment."""
    for last in (False, False, False, True):
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/environ", "rb") as f:
                    if f"{MARK}={value}".encode() in f.read().split(b"\0"):
                        found.append(int(pid))
            except OSError:
                pass
        if not found or last:
            return found
        time.sleep(1)
    return []


class Stops(Case):
    def test_each_phase(self):
        """The n-th start is stopped at its n-th unit, so that each comes further than the one before; but for the third, which finds
        what was captured and would come past learning."""
        want, out, phases = self.path("want"), self.path("got"), set()
        self.good("quantize", "--out", want, *HOW)
        for unit in (1, 2, *range(2, 60)):
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
        and memory at each start: the same bytes, no hang, nobody left behind. Most starts are of one rank, without a
        launcher, which takes longer to start than the run itself. SPINSHARD_KILLS=300 and another SPINSHARD_KILL_SEED do
        more than CI; the log then has a line for each kill."""
        draw, wanted = random.Random(int(os.environ.get("SPINSHARD_KILL_SEED", "3"))), int(os.environ.get("SPINSHARD_KILLS", "60"))
        kills, phases, ranks_killed, chain = 0, collections.Counter(), collections.Counter(), 0
        want = self.path("want")
        self.good("quantize", "--out", want, *HOW)
        while kills < wanted:
            out, chain = self.path(f"killed{chain}"), chain + 1
            for _ in range(100):
                ranks = draw.choice((0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 3, 4))
                kind, most = draw.choice((("any", 150), ("unit", 14)))
                mem = draw.choice(([], ["--mem", "200M"], ["--mem", "100M"]))
                fault = f"{kind}:{draw.randrange(10 ** 6)}/{most}:{draw.randrange(max(1, ranks))}:kill"
                p = start(["quantize", "--out", out, *HOW, *mem], ranks=ranks, threads=draw.choice((1, 2)) if not ranks else 1,
                          env={"SPINSHARD_FAULT": fault, MARK: out})
                r = finish(p, LIMIT)
                self.assertEqual(left_behind(out), [], r)
                if r.rc == 0:
                    break
                self.assertIn(r.rc, (-signal.SIGKILL, 128 + signal.SIGKILL, 9), r)
                seen, kills = events(out), kills + 1
                phases[seen[-1]["phase"] if seen else "before"] += 1
                ranks_killed[max(1, ranks)] += 1
                if wanted > 60:
                    where = seen[-1]["phase"] if seen else "before"
                    print(f"kill {kills}: run {chain}, {max(1, ranks)} ranks, {fault}, {where}", file=sys.stderr, flush=True)
            self.assertEqual(r.rc, 0, r)
            self.assertEqual(result_hashes(want), result_hashes(out), f"after {kills} kills")
            shutil.rmtree(out)
        print(f"{kills} kills in {chain} runs, none hung, nobody left behind, the same bytes each time; by phase that was last seen "
              f"{dict(phases)}, by ranks {dict(ranks_killed)}", file=sys.stderr)
        self.assertGreaterEqual(len(phases), 4)


if __name__ == "__main__":
    main()
