#!/usr/bin/env python3
"""What the capture left in the run state is read back by later starts, on other ranks too: the same bytes, and nothing is
captured twice; where it is damaged it is captured again."""
import json
import os
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
from kills import events  # noqa: E402
from spin import STORIES, TEXT, Case, main, result_hashes, settings, spin  # noqa: E402

PHASES = "{objective: range, steps: 2, rows: 256}, {objective: range, steps: 2, rows: 256, weights: true, draw: importance}"


def how(windows):
    return ["quantize", "--model", STORIES, "--recipe", "scales-w4a4kv4", "--calib", TEXT,
            *settings("weights.group=channel", "rotate.online=[r3]", "rotate.r3=pca", "scale.pairs=[norm, vo, ud]", "calib.window=64",
                      f"calib.windows={windows}", f"learn=[{PHASES}]")]


def captured(found):
    """How many captures came to their end, and how many were read back."""
    ends = [e for e in found if (e["phase"], e["event"]) == ("capture", "end")]
    return len(ends), sum(e["event"] == "read_back" for e in found)


def work_of(out):
    with open(os.path.join(out, "run", "state.json")) as f:
        return json.load(f)[0]["body"]["work"]


def objects(out):
    """Names in the folder of objects; those of them that state.json does not say anywhere."""
    folder = os.path.join(out, "run", "objects")
    with open(os.path.join(out, "run", "state.json")) as f:
        text = f.read()
    names = os.listdir(folder)
    return names, [n for n in names if n not in text]


def looks(out):
    """The last inputs of each layer, for the report."""
    return {e["layer"]: e["sites"] for e in events(out) if (e["phase"], e["event"]) == ("inputs", "sites")}


class Captured(Case):
    def killed(self, out, unit, ranks):
        r = spin(*how(4), "--out", out, ranks=ranks, env={"SPINSHARD_FAULT": f"unit:{unit}:0:kill"})
        self.assertNotEqual(r.rc, 0)
        return r

    def test_killed_in_each_phase(self):
        """Of one run each start but the last is killed in another phase that stands behind the capture."""
        want, out = self.path("want"), self.path("out")
        self.good(*how(4), "--out", want)
        names, phases = None, []
        # Units: three between four windows, start, two steps and two, ten norms less one, five layers less one.
        for unit, ranks in ((4, 0), (2, 2), (3, 3), (4, 0), (6, 2)):
            self.killed(out, unit, ranks)
            phases.append([e["phase"] for e in events(out) if e["event"] in ("unit", "step", "start", "held")][-1])
            work = work_of(out)
            names = names or work["captured"]
            self.assertEqual(names, work["captured"])
        self.assertEqual(captured(events(out))[1], 4)
        self.assertLessEqual({"learn.0", "learn.1", "scales", "sites"}, set(phases))
        kept = [e for e in events(out) if (e["phase"], e["event"]) == ("capture", "commit")]
        plan = self.good("plan", *how(4)[1:], "--json").json()["phases"][0]
        self.assertEqual([e["bytes"] for e in kept], [plan["kept_bytes"]])
        self.assertEqual(names["bytes"], plan["kept_bytes"])
        self.assertIn("captured rows are kept", self.good("status", out).out)
        r = self.good(*how(4), "--out", out, ranks=3)
        self.assertIn("captured rows read back", r.err)
        self.assertEqual(result_hashes(want), result_hashes(out))
        # the one capture was killed behind its commit, so none ever came to its end
        self.assertEqual(captured(events(out)), (0, 5))

    def test_same_objects_on_any_ranks(self):
        named = []
        for ranks in (0, 3):
            out = self.path(f"r{ranks}")
            self.killed(out, 4 if not ranks else 2, ranks)
            named.append(work_of(out)["captured"])
        self.assertEqual(*named)

    def test_damaged(self):
        """An object with a flipped bit, one that is cut, one that is missing."""
        want, first = self.path("want"), self.path("first")
        self.good(*how(4), "--out", want)
        self.killed(first, 5, 0)
        names = [c["object"] for c in work_of(first)["captured"]["cells"]]
        r = spin(*how(4), "--out", shutil.copytree(first, self.path("no report")), "--report", "off")
        self.assertIn("captured rows read back", r.err)  # rows for it are there, and nobody wants them
        for how_, ranks in (("flip", 2), ("cut", 0), ("missing", 0)):
            out = self.path(how_)
            shutil.copytree(first, out)
            path = os.path.join(out, "run", "objects", names[3])
            with open(path, "r+b") as f:
                f.seek(1000)
                byte = f.read(1)
                f.seek(1000)
                if how_ == "flip":
                    f.write(bytes([byte[0] ^ 1]))
                elif how_ == "cut":
                    f.truncate()
            if how_ == "missing":
                os.remove(path)
            r = self.good(*how(4), "--out", out, ranks=ranks)
            self.assertIn("it is captured again", r.err)
            self.assertEqual(captured(events(out)), (2, 0), how_)
            self.assertEqual(result_hashes(want), result_hashes(out), how_)

    def test_damaged_takes_no_room(self):
        """What is captured again does not stand beside what was damaged."""
        out = self.path("out")
        self.killed(out, 5, 0)
        names = [c["object"] for c in work_of(out)["captured"]["cells"]]
        with open(os.path.join(out, "run", "objects", names[1]), "r+b") as f:
            f.truncate(1000)
        self.assertIn("it is captured again", self.killed(out, 1, 2).err)
        self.assertNotIn("captured", work_of(out))
        self.assertFalse(set(names) & set(objects(out)[0]))

    def test_killed_before_the_commit(self):
        """Objects of all layers have their names and no commit has said them: the next start removes them."""
        out = self.path("out")
        for rename in range(1, 30):
            shutil.rmtree(out, ignore_errors=True)
            r = spin(*how(4), "--out", out, env={"SPINSHARD_FAULT": f"rename:{rename}:0:kill"})
            self.assertNotEqual(r.rc, 0, "no kill came between objects and commit")
            if os.path.exists(os.path.join(out, "run", "state.json")) and len(objects(out)[1]) == 5:
                break
        self.assertEqual(len(objects(out)[1]), 5, "one for each layer")
        self.killed(out, 1, 0)
        self.assertEqual(objects(out)[0], [])

    def test_killed_before_the_look(self):
        """Behind the last commit of learning, before the inputs of the report are told: the next start tells them, and captures
        nothing. The place is where copies of what was learned are compared."""
        want, out = self.path("want"), self.path("out")
        self.good(*how(4), "--out", want)

        def learned(n):
            shutil.rmtree(out, ignore_errors=True)
            self.killed_at = spin(*how(4), "--out", out, env={"SPINSHARD_FAULT": f"state:{n}:0:kill"})
            return ("sites", "end") in [(e["phase"], e["event"]) for e in events(out)]
        low, high = 0, 64
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if learned(middle) else (middle, high)
        self.assertTrue(learned(high))
        self.assertNotEqual(self.killed_at.rc, 0)
        self.assertEqual(looks(out), {})
        self.good(*how(4), "--out", out, "--keep-run", ranks=2)
        self.assertEqual(looks(out), looks(want))
        self.assertEqual(sorted(looks(out)), [0, 1, 2, 3, 4])
        self.assertEqual(captured(events(out)), (1, 1))
        self.assertNotIn("captured", work_of(out))
        self.assertEqual(objects(out)[1], [])
        self.assertEqual(result_hashes(want), result_hashes(out))

    def test_short_jobs(self):
        """Jobs that are stopped at their twelfth unit, the capture taking eleven: each used to capture and stop, for ever. Now the
        first captures, and three more come to the end of learning."""
        want, out = self.path("want"), self.path("out")
        self.good(*how(12), "--out", want)
        for job in range(1, 5):
            r = spin(*how(12), "--out", out, env={"SPINSHARD_FAULT": "unit:12:0:term"})
            self.assertEqual(r.rc, 75, r)
            found = events(out)
            self.assertEqual(captured(found), (0, job - 1))
        self.assertIn("round", [e["phase"] for e in found])
        self.assertNotIn("captured", work_of(out))
        self.good(*how(12), "--out", out)
        self.assertEqual(result_hashes(want), result_hashes(out))

    def test_full_disk(self):
        """No room for what is captured is no reason to stop: a restart captures again."""
        out = self.path("full")
        work = []
        for n in range(1, 30):
            shutil.rmtree(out, ignore_errors=True)
            r = spin(*how(4), "--out", out, env={"SPINSHARD_FAULT": f"write:{n}:0:enospc"})
            if "a restart captures again" in r.err:
                self.assertEqual(r.rc, 0, r)
                work.append(n)
                break
        self.assertTrue(work, "no write of the captured rows was met")


if __name__ == "__main__":
    main()
