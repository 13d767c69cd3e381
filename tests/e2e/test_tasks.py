#!/usr/bin/env python3
"""eval --tasks: likelihoods are those of the text, whatever is packed beside, on any ranks; known choices; bad input."""
import json
import math
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
from spin import STORIES, TEXT, Case, main, spin  # noqa: E402

BEGIN = "Once upon a time, there was a little girl"
END = "named Lily. She loved to play"
CHOICES = [
    {"query": "Once upon a time, there was a little girl named", "choices": ["Lily.", "engine oil.", "xq"], "gold": 0},
    {"query": "Lily and Tom went to the park. They", "choices": ["saw a dog", "quantized"], "gold": 1},
    {"query": "The sun was", "choices": ["bright and warm, and the birds were happy", "the"], "gold": 0},
]
CONTEXTS = {"contexts": ["One day, the boy went", "Zzz qqq"], "continuation": "to the park.", "gold": 0}


class Tasks(Case):
    def file(self, name, *items):
        path = self.path(name + ".jsonl")
        with open(path, "w", encoding="utf-8") as f:
            f.writelines(json.dumps(item) + "\n" for item in items)
        return path

    def run_tasks(self, *files, more=(), **how):
        items = self.path("items")
        words = [w for f in files for w in ("--tasks", f)]
        r = self.good("eval", "--model", STORIES, *words, "--json", "--items", items, "--dtype", "fp64", *more, **how)
        with open(items, encoding="utf-8") as f:
            return r.json()["tasks"], [json.loads(line) for line in f]

    def nll_of_text(self, text):
        """Summed -log p of a text from its windows: the longest that there is room for holds all of it."""
        path = self.path("text")
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)
        for window in range(64, 2, -1):
            r = spin("eval", "--model", STORIES, "--text", path, "--window", window, "--json", "--dtype", "fp64")
            if r.rc == 0:
                return r.json()["perplexity"][0]["nll"] * (window - 1)
        raise AssertionError("no window fits")

    def test_likelihood_is_that_of_the_text(self):
        (task,), items = self.run_tasks(self.file("words", *[{"context": BEGIN, "continuation": END}] * 3))
        want = self.nll_of_text(BEGIN + " " + END) - self.nll_of_text(BEGIN)
        for item in items:
            self.assertLess(abs(-item["loglikelihood"][0] - want), 1e-9 * want)
        self.assertLess(abs(task["ppl"] - math.exp(want)), 1e-8 * task["ppl"])

    def test_packing_and_ranks(self):
        """The same bits on any number of ranks; and each item the same, to rounding, as alone."""
        files = [self.file("choices", *CHOICES * 5), self.file("contexts", CONTEXTS)]
        first = None
        for ranks in (0, 2, 3, 4):
            for threads in (1, 2):
                got = self.run_tasks(*files, ranks=ranks, threads=threads)
                first = first or got
                self.assertEqual(first, got, f"{ranks} ranks, {threads} threads")
        for i, item in enumerate([*CHOICES, CONTEXTS]):
            _, (alone,) = self.run_tasks(self.file("alone", item))
            packed = first[1][15 if item is CONTEXTS else i]
            for a, b in zip(alone["loglikelihood"], packed["loglikelihood"]):
                self.assertLess(abs(a - b), 1e-10 * abs(a))

    def test_choices(self):
        (choices, contexts), items = self.run_tasks(self.file("c", *CHOICES), self.file("w", CONTEXTS))
        for i, item in enumerate(items[:3]):
            best = max(range(len(item["loglikelihood"])), key=lambda k: item["loglikelihood"][k])
            self.assertEqual(item["characters"], [len(c) for c in CHOICES[i]["choices"]])
            self.assertEqual(best, [0, 0, 1][i])  # the third by its length
        norm = [v / n for v, n in zip(items[2]["loglikelihood"], items[2]["characters"])]
        self.assertGreater(norm[0], norm[1])
        self.assertEqual((choices["n"], contexts["n"]), (3, 1))
        self.assertAlmostEqual(choices["acc"], 1 / 3)
        self.assertAlmostEqual(choices["acc_norm"], 2 / 3)
        self.assertAlmostEqual(choices["acc_stderr"], math.sqrt(1 / 3 * 2 / 3 / 2))
        self.assertEqual(contexts["acc"], 1)

    def test_greedy(self):
        items = [{"context": "Once upon", "continuation": "a time"}, {"context": "Once upon", "continuation": "a qx"}]
        (task,), got = self.run_tasks(self.file("g", *items), ranks=2)
        self.assertEqual([i["exact"] for i in got], [True, False])
        self.assertEqual(task["acc"], 0.5)

    def test_beside_a_text(self):
        args = ["--text", TEXT, "--window", 64, "--limit", 2]
        both = self.good("eval", "--model", STORIES, "--tasks", self.file("c", *CHOICES), *args, "--json").json()
        alone = self.good("eval", "--model", STORIES, *args, "--json").json()
        self.assertEqual(both["perplexity"], alone["perplexity"])
        self.assertEqual(both["tasks"][0]["n"], 2)
        table = self.good("eval", "--model", STORIES, "--tasks", self.file("c", *CHOICES)).out
        self.assertIn("per character", table)

    def test_bad(self):
        def bad(code, words, name, *more):
            self.bad(code, words, "eval", "--model", STORIES, "--tasks", name, *more)

        bad(3, ["line 1", "keys"], self.file("a", {"query": "q"}))
        bad(3, ["no items"], self.file("b"))
        bad(3, ["nothing-here"], self.path("nothing-here"))
        bad(2, ["--window"], self.file("c", {"context": "a", "continuation": END}), "--window", 4)
        self.bad(2, ["--tasks"], "eval", "--model", STORIES, "--text", TEXT, "--items", self.path("i"))


if __name__ == "__main__":
    main()
