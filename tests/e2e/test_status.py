#!/usr/bin/env python3
"""status of a run that was stopped in the middle, and while it runs: phase, units, time left, commits, starts, node hours,
how the last start ended; a stop that was asked for is no error."""
import json
import os
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
from kills import events  # noqa: E402
from spin import STORIES, TEXT, Case, main, settings, spin  # noqa: E402

HOW = ["--model", STORIES, "--calib", TEXT,
       *settings("activations.bits=4", "weights.group=channel", "calib.window=64", "calib.windows=4",
                 "learn=[{objective: range, steps: 40, rows: 256}]")]


class Status(Case):
    def line(self, out, **event):
        """An event as a run would have added it."""
        with open(os.path.join(out, "events.jsonl"), "a") as f:
            f.write(json.dumps(event) + "\n")

    def test_counts(self):
        """Figures by hand: a start on 2 nodes that ran 1800 s and 10 to 20 of 100 steps in 50 s of them."""
        out = self.path("out")
        os.makedirs(os.path.join(out, "run"))
        phases = [{"phase": n, "seconds": s, "units": u, "bytes": 1 << 30}
                  for n, s, u in (("capture", 30, 0), ("learn.0", 500, 100), ("gptq", 60, 5))]
        for t, phase, event, more in ((0, "load", "run", {"nodes": 2, "ranks": 4}), (0, "load", "plan", {"phases": phases}),
                                      (10, "learn.0", "start", {}), (1750, "learn.0", "step", {"step": 10, "loss": 2.5}),
                                      (1790, "learn.0", "commit", {"step": 18}),
                                      (1800, "learn.0", "step", {"step": 20, "loss": 1.5})):
            self.line(out, t=t, wall="2026-01-01T00:00:00Z", slice=0, phase=phase, event=event, **more)
        got = self.good("status", out, "--json").json()
        want = {"running": "learn.0", "phase_number": 2, "phases": 3, "done": 20, "total": 100, "loss": 1.5, "starts": 1,
                "node_hours": 1.0, "phase_left_s": 400.0, "run_left_s": 460.0, "last_commit": "2026-01-01T00:00:00Z",
                "planned_bytes": 1 << 30}
        self.assertEqual({k: got.get(k) for k in want}, want)
        self.assertNotIn("last_exit", got)
        self.assertIn("perhaps for memory", got["death"])
        text = self.good("status", out).out
        for words in ("phase 2 of 3: 20 of 100 done, loss 1.5, 7 min of the phase left, 8 min of the run left",
                      "0:30:00 and 1 node hours in 1 starts",
                      "in learn.0, where 1.00 GiB are planned on the largest rank: it was killed, perhaps for memory"):
            self.assertIn(words, text)
        self.line(out, t=5, wall="", slice=1, phase="learn.0", event="stop", exit=75)
        got = self.good("status", out, "--json").json()
        self.assertEqual((got["starts"], got["last_exit"]), (2, 75))
        # The first start was taken over; it finds that out and says so, late: that is not how the second one is.
        self.line(out, t=1900, wall="", slice=0, phase="learn.0", event="step", step=90, loss=9.5)
        self.line(out, t=1900, wall="", slice=0, phase="learn.0", event="stop", exit=7)
        late = self.good("status", out, "--json").json()
        self.assertEqual({**late, "owner": None}, {**got, "owner": None})
        run = self.good("report", out, "--json").json()["run"]
        self.assertEqual([(s["slice"], s["seconds"], s.get("exit")) for s in run["slices"]], [(0, 1800, None), (1, 5, 75)])
        # Somebody removed OUT/run: slices begin again, and that is a start like any other.
        self.line(out, t=0, wall="", slice=0, phase="load", event="plan", phases=phases)
        self.line(out, t=3, wall="", slice=0, phase="learn.0", event="step", step=1, loss=3.5)
        got = self.good("status", out, "--json").json()
        self.assertEqual((got["starts"], got["loss"], got.get("last_exit")), (3, 3.5, None))

    def test_of_a_run(self):
        out = self.path("out")
        r = spin("quantize", "--out", out, *HOW, env={"SPINSHARD_FAULT": "commit:1"})  # learns, and fails where it rounds
        self.assertEqual(r.rc, 1, r)
        got = self.good("status", out, "--json").json()
        self.assertEqual((got["state"], got["running"], got["last_exit"], got["starts"]), ("unfinished", "round", 1, 1))
        plan = [e for e in events(out) if e["event"] == "plan"]
        self.assertEqual([p["phase"] for p in plan[0]["phases"]], ["capture", "learn.0", "round", "pack", "verify"])
        r = spin("quantize", "--out", out, *HOW, env={"SPINSHARD_FAULT": "unit:2:0:kill"})
        self.assertEqual(r.rc, -9, r)
        died = self.good("status", out, "--json").json()
        self.assertRegex(died["death"], "in (learn.0|round), where .* are planned on the largest rank")
        r = self.good("quantize", "--out", out, *HOW)
        self.assertIn(died["death"], r.err)
        self.assertNotIn("error:", r.err)
        told = [e for e in events(out) if e["event"] == "layer" and "relative_error" in e]
        by_layer = {e["item"] - 1: 100 * e["relative_error"] for e in told}
        worst = max(by_layer, key=by_layer.get)
        said = re.search(r"off by (\S+) % of their norm in the mean of (\d+) layers, most by (\S+) % in layer (\d+)", r.err)
        self.assertEqual((int(said[2]), int(said[4])), (len(by_layer), worst))
        self.assertAlmostEqual(float(said[1]), sum(by_layer.values()) / len(by_layer), delta=0.006 * by_layer[worst])
        self.assertAlmostEqual(float(said[3]), by_layer[worst], delta=0.006 * by_layer[worst])
        self.assertRegex(r.err, r"in all: 0:00:\d\d and \S+ node hours in 3 starts")
        got = self.good("status", out, "--watch", "--json").json()  # at once: it does not run
        self.assertEqual((got["state"], got["last_exit"], got["starts"]), ("complete", 0, 3))


if __name__ == "__main__":
    main()
