#!/usr/bin/env python3
"""eval --against: the same bits on any ranks, nothing where nothing differs, the perplexity as without it; bad input.
Against another program: test_against_oracle.py."""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import make_model  # noqa: E402
from spin import STORIES, TEXT, Case, main, settings  # noqa: E402

WORDS = ["--text", TEXT, "--window", 96, "--limit", 3, "--json"]


class Against(Case):
    def evaluate(self, model, *more, **how):
        return self.good("eval", "--model", model, *WORDS, *more, **how).json()["perplexity"][0]

    def test_any_ranks(self):
        out = self.path("out")
        self.good("quantize", "--model", STORIES, "--out", out, *settings("weights.group=channel"))
        alone, first = self.evaluate(out), None
        for ranks in (0, 2, 3):
            got = self.evaluate(out, "--against", STORIES, ranks=ranks)
            first = first or got
            self.assertEqual(first, got, f"{ranks} ranks")
        distance = first.pop("against")
        self.assertEqual(first, alone)
        source = self.evaluate(STORIES)
        for key in ("nll", "ppl", "nll_stderr", "ppl_stderr"):  # of float32 sums, and of logits in float64
            self.assertLess(abs(distance[key] - source[key]), 1e-4 * source[key])
        self.assertLess(abs(distance["nll_more"] - (alone["nll"] - source["nll"])), 1e-4)
        self.assertTrue(0 < distance["kl_mean"] < distance["kl_99"] <= distance["kl_max"])
        self.assertTrue(0 < distance["same_top"] < 1 and distance["kl_mean_stderr"] > 0)
        table = self.good("eval", "--model", out, *WORDS[:-1], "--against", STORIES).out
        self.assertIn("same top token", table)

    def test_nothing_differs(self):
        got = self.evaluate(STORIES, "--against", STORIES, "--dtype", "fp64")["against"]
        self.assertEqual([got[k] for k in ("kl_mean", "kl_99", "kl_max", "nll_more", "same_top")], [0, 0, 0, 0, 1])
        noisy = self.evaluate(STORIES, "--against", STORIES, *settings("activations.bits=4"))["against"]
        self.assertGreater(noisy["kl_mean"], 0)

    def test_bad(self):
        out = self.path("out")
        self.good("quantize", "--model", STORIES, "--out", out)
        other = make_model.make(self.path("other"), "--hidden", 64, "--intermediate", 128, "--layers", 2)
        self.bad(2, ["--against", "quantized"], "eval", "--model", out, *WORDS, "--against", out)
        self.bad(2, ["--against", "layers"], "eval", "--model", STORIES, *WORDS, "--against", other, ranks=2)
        self.bad(2, ["--text"], "eval", "--model", STORIES, "--tasks", self.path("t"), "--against", STORIES)
        self.bad(3, ["nothing-here"], "eval", "--model", STORIES, *WORDS, "--against", self.path("nothing-here"))


if __name__ == "__main__":
    main()
