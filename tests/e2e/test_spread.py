#!/usr/bin/env python3
"""bench/spread.py on the shipped model: its figures are those of runs by hand, it goes on where it was, and it does
not mix settings."""
import json
import os
import statistics
import subprocess
import sys
import xml.etree.ElementTree

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
from spin import STORIES, TESTS, TEXT, Case, environment, main, program, settings  # noqa: E402

SPREAD = os.path.join(os.path.dirname(TESTS), "bench", "spread.py")


class Spread(Case):
    def spread(self, *more, rc=0, weights=4):
        r = subprocess.run([sys.executable, SPREAD, "--program", program(), "--model", STORIES, "--text", TEXT, "--work",
                            self.path("work"), "--window", "96", "--limit", "4", "--table-seeds", "2", "--ranks", "1",
                            "--weights", str(weights), *more], capture_output=True, text=True, env=environment())
        self.assertEqual(r.returncode, rc, r.stderr)
        return r

    def result(self):
        with open(self.path("work", "spread.json")) as f:
            return json.load(f)

    def test_figures_and_going_on(self):
        # an intermediate size of 172 has no Hadamard matrix here: without R4 the starts still run
        first = self.spread("--seeds", "2", "--set", "rotate.online=[r3]")
        got = self.result()
        by_hand = []
        for seed in (0, 1):
            out = self.path(f"hand{seed}")
            self.good("quantize", "--model", STORIES, "--out", out, "--recipe", "spread-w4a4kv4", "--seed", seed,
                      *settings("rotate.online=[r3]"))
            by_hand.append(self.perplexity(out, TEXT, 96, "--limit", 4)["ppl"])
        had = got["random_starts"]["had"]
        self.assertEqual((had["min"], had["max"]), (min(by_hand), max(by_hand)))
        self.assertAlmostEqual(had["sd"], statistics.stdev(by_hand), places=12)
        self.assertEqual(got["random_starts"]["orthogonal"]["n"], 2)
        self.assertEqual(set(got["rotations"]), {"none", "R1", "R1 R2", "R1 R2 R3"})
        self.assertIn("172", first.stdout)
        self.assertIn("; 13 runs made now, 0 found", first.stdout)
        again = self.spread("--seeds", "2", "--set", "rotate.online=[r3]")
        self.assertIn("\nperplexity, lower is better; 0 runs made now", again.stdout)
        self.assertEqual(got, self.result())
        more = self.spread("--seeds", "3", "--set", "rotate.online=[r3]")
        self.assertIn("; 2 runs made now", more.stdout)
        other = self.spread("--seeds", "2", "--limit", "5", rc=1)
        self.assertIn("other settings (limit, set)", other.stderr)

    def test_tasks_learned_and_picture(self):
        tasks, out, words = self.path("t.jsonl"), self.path("had"), ["--set", "rotate.online=[]"]
        with open(tasks, "w") as f:
            f.write(json.dumps({"context": "The sun was", "choices": ["bright and warm", "xq"], "gold": 0}) + "\n")
        self.good("quantize", "--model", STORIES, "--out", out, *settings("rotate.start=had"))
        self.spread("--seeds", "2", "--tasks", tasks, "--learned", os.path.join(out, "rotations.safetensors"), *words, weights=16)
        got = self.result()
        (learned,) = [s for name, s in got["random_starts"].items() if name.startswith("learned")]
        p = self.perplexity(STORIES, TEXT, 96, "--limit", 4, "--recipe", "spread-w4a4kv4", "--rotations",
                            os.path.join(out, "rotations.safetensors"), *settings("rotate.online=[]"))
        self.assertEqual(learned["runs"]["ppl"], [p["ppl"]])
        self.assertEqual(got["random_starts"]["had"]["acc"]["mean"], 1)
        root = xml.etree.ElementTree.parse(self.path("work", "spread.svg")).getroot()
        points = [e for e in root.iter() if e.tag.endswith("circle")]
        runs = sum(s["n"] for part in got.values() for s in part.values())
        self.assertEqual(len(points), 2 * runs)  # by perplexity and by accuracy

    def test_weights_as_they_are(self):
        self.spread("--seeds", "1", "--set", "rotate.online=[]", weights=16)
        p = self.perplexity(STORIES, TEXT, 96, "--limit", 4, "--recipe", "spread-w4a4kv4", *settings("rotate.online=[]"))
        self.assertEqual(self.result()["random_starts"]["had"]["min"], p["ppl"])


if __name__ == "__main__":
    main()
