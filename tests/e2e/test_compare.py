#!/usr/bin/env python3
"""`compare` on the shipped model: its figures are those of runs by hand; it goes on where it was; what is refused has
its reason; settings are not mixed; ranks change nothing."""
import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
from spin import STORIES, TEXT, Case, main, settings, spin  # noqa: E402

QUICK = ("calib.windows=4", "calib.window=96")
SHORT = TEXT + ",limit=4"


class Compare(Case):
    def words(self, recipes, texts=(SHORT,)):
        return ["compare", "--model", STORIES, "--out", self.path("out"), "--calib", TEXT, "--recipes", ",".join(recipes),
                "--window", "96", *(w for t in texts for w in ("--text", t)), *settings(*QUICK)]

    def compare(self, *recipes, **more):
        """The rows by name."""
        return {row["name"]: row for row in self.good(*self.words(recipes), "--json", **more).json()}

    def spin_stopped(self, *words):
        """It dies in the middle of a row, behind a commit."""
        r = spin(*words, env={"SPINSHARD_FAULT": "commit:2:0:kill"})
        self.assertNotEqual(r.rc, 0)

    def row_file(self, name):
        return self.path("out", name + ".json")

    def test_rows(self):
        rows = self.compare("rtn-w4a16", "smoothquant-w8a8", "quarot-w4a4kv4")
        for name in ("rtn-w4a16", "smoothquant-w8a8"):
            out = self.path(name)
            self.good("quantize", "--model", STORIES, "--out", out, "--recipe", name, "--calib", TEXT, *settings(*QUICK))
            by_hand = self.good("eval", "--model", out, "--text", TEXT, "--limit", 4, "--window", 96, "--against", STORIES,
                                "--json").json()
            self.assertEqual(rows[name]["eval"]["perplexity"], by_hand["perplexity"])
            self.assertEqual(rows[name]["report"]["summary"]["tar_bytes"],
                             sum(os.path.getsize(os.path.join(out, t)) for t in os.listdir(out) if t.endswith(".tar")))
            self.assertIn("transformers", rows[name]["runtimes"])
        (source,) = rows["source"]["eval"]["perplexity"]
        self.assertEqual(source["ppl"], self.perplexity(STORIES, TEXT, 96, "--limit", 4)["ppl"])
        self.assertIn("no Hadamard matrix of order 172", rows["quarot-w4a4kv4"]["refused"])
        table = self.good(*self.words(["rtn-w4a16", "quarot-w4a4kv4"])).out.splitlines()
        self.assertEqual(len(table), 5)
        self.assertIn("no Hadamard matrix of order 172", table[4])
        self.assertIn(f"{rows['rtn-w4a16']['eval']['perplexity'][0]['ppl']:.3f}", table[3])
        with open(self.path("out", "report.html"), encoding="utf-8") as f:
            self.assertIn("rtn-w4a16", f.read())

    def test_goes_on(self):
        first = self.compare("rtn-w4a16")
        made = os.stat(self.row_file("rtn-w4a16")).st_mtime_ns
        # what is there is not made again, though its archive is gone; what is added costs only itself
        self.assertEqual(self.compare("rtn-w4a16", "hadamard-w4a16")["rtn-w4a16"], first["rtn-w4a16"])
        self.assertEqual(os.stat(self.row_file("rtn-w4a16")).st_mtime_ns, made)
        # an archive that was made, but not measured yet, is not made again; over two ranks it measures the same
        archive = self.path("out", "hadamard-w4a16", "manifest.json")
        made = os.stat(archive).st_mtime_ns
        with open(self.row_file("hadamard-w4a16")) as f:
            before = json.load(f)["eval"]["perplexity"]
        os.remove(self.row_file("hadamard-w4a16"))
        again = self.compare("hadamard-w4a16", ranks=2)["hadamard-w4a16"]
        self.assertEqual(os.stat(archive).st_mtime_ns, made)
        self.assertEqual(again["eval"]["perplexity"], before)

    def test_recipe_file(self):
        mine = self.path("mine.yaml")
        size = []
        for bits in (4, 8):
            with open(mine, "w") as f:
                f.write(f"recipe_version: 1\nweights: {{bits: {bits}}}\n")
            if bits == 8:  # a recipe file that changed is run again, also in parts
                self.spin_stopped(*self.words([mine]))
            row = self.compare(mine)["mine"]
            size.append(row["report"]["summary"]["tar_bytes"])
        self.assertGreater(size[1], size[0])
        self.good(*self.words([mine, "rtn-w4a16"]), "--drop-archives")
        self.assertFalse(os.path.exists(self.path("out", "rtn-w4a16")))
        self.assertTrue(os.path.exists(self.row_file("rtn-w4a16")))

    def test_refusals(self):
        self.compare("rtn-w4a16")
        self.bad(7, ["results of another text"], *self.words(["rtn-w4a16"], [TEXT + ",limit=5"]))
        for recipes, texts, what in ((["rtn-w4a16", "rtn-w4a16"], [SHORT], "two rows"),
                                     (["rtn-w4a16"], [TEXT + ",limit=0"], "whole number"),
                                     (["rtn-w4a16"], [TEXT + ",limit=1,limit=2"], "said twice"),
                                     (["rtn-w4a61"], [SHORT], "rtn-w4a61")):
            self.bad(2, [what], *self.words(recipes, texts))


if __name__ == "__main__":
    main()
