#!/usr/bin/env python3
"""bench/compare.py on the shipped model: its figures are those of runs by hand; it goes on where it was, also in the
middle of a recipe; what is refused has its reason; settings are not mixed."""
import json
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
from spin import STORIES, TESTS, TEXT, Case, environment, main, program, settings  # noqa: E402

COMPARE = os.path.join(os.path.dirname(TESTS), "bench", "compare.py")
QUICK = ("calib.windows=4", "calib.window=96")


class Compare(Case):
    def compare(self, *recipes, texts=(TEXT + ",limit=4",), more=(), rc=0):
        words = [w for t in texts for w in ("--text", t)]
        r = subprocess.run([sys.executable, COMPARE, "--program", program(), "--model", STORIES, "--calib", TEXT, *words,
                            "--work", self.path("work"), "--window", "96", "--ranks", "1", *settings(*QUICK), *more, *recipes],
                           capture_output=True, text=True, env=environment())
        self.assertEqual(r.returncode, rc, r.stderr)
        return r

    def row(self, name):
        with open(self.path("work", name + ".json")) as f:
            return json.load(f)

    def test_rows(self):
        first = self.compare("rtn-w4a16", "smoothquant-w8a8", "quarot-w4a4kv4")
        for name in ("rtn-w4a16", "smoothquant-w8a8"):
            out = self.path(name)
            self.good("quantize", "--model", STORIES, "--out", out, "--recipe", name, "--calib", TEXT, *settings(*QUICK))
            got = self.row(name)
            self.assertEqual(got["perplexity"]["stories"], self.perplexity(out, TEXT, 96, "--limit", 4)["ppl"])
            self.assertEqual(got["bytes"], sum(os.path.getsize(os.path.join(out, t)) for t in os.listdir(out) if t.endswith(".tar")))
            self.assertEqual(got["runs_in"], "runtimes")
            self.assertGreater(got["seconds"], 0)
        self.assertEqual(self.row("source")["perplexity"]["stories"], self.perplexity(STORIES, TEXT, 96, "--limit", 4)["ppl"])
        self.assertIn("172", self.row("quarot-w4a4kv4")["refused"])  # that size has no Hadamard matrix
        self.assertIn("no Hadamard matrix of order 172", first.stdout)
        self.assertIn("; 4 rows made now, 0 found", first.stdout)
        self.assertFalse(os.path.exists(self.path("work", "rtn-w4a16.archive")))

    def test_goes_on(self):
        self.compare("rtn-w4a16")
        self.assertIn("; 1 rows made now, 2 found", self.compare("rtn-w4a16", "hadamard-w4a16").stdout)
        # an archive that was made, but not measured yet, is not made again
        out = self.path("work", "rtn-w4a16.archive")
        self.good("quantize", "--model", STORIES, "--out", out, "--recipe", "rtn-w4a16", *settings(*QUICK, "weights.bits=8"))
        os.remove(self.path("work", "rtn-w4a16.json"))
        self.compare("rtn-w4a16", more=("--keep",))
        self.assertLess(self.row("rtn-w4a16")["perplexity"]["stories"], self.row("source")["perplexity"]["stories"] * 1.01)
        self.compare("rtn-w4a16", "hadamard-w4a16", "smoothquant-w8a8", more=("--keep",))
        with open(self.path("work", "report.html"), encoding="utf-8") as f:
            page = f.read()
        self.assertIn("Beside other runs", page)
        self.assertIn("smoothquant-w8a8.archive", page)
        # a recipe file that changed is run again
        with open(self.path("mine.yaml"), "w") as f:
            f.write("recipe_version: 1\nweights: {bits: 4}\n")
        self.compare(self.path("mine.yaml"))
        four = self.row("mine")["bytes"]
        with open(self.path("mine.yaml"), "w") as f:
            f.write("recipe_version: 1\nweights: {bits: 8}\n")
        self.compare(self.path("mine.yaml"))
        self.assertGreater(self.row("mine")["bytes"], four)

    def test_refusals(self):
        self.compare("rtn-w4a16")
        self.assertIn("other settings (texts)", self.compare("rtn-w4a16", texts=(TEXT + ",limit=5",), rc=1).stderr)
        self.assertIn("limit=N", self.compare("rtn-w4a16", texts=(TEXT + ",limits=5",), rc=1).stderr)
        self.assertIn("one name", self.compare("rtn-w4a16", texts=(TEXT, TEXT), rc=1).stderr)


if __name__ == "__main__":
    main()
