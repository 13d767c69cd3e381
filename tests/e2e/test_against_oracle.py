#!/usr/bin/env python3
"""eval --against in float32 against transformers: an archive, unpacked and loaded by compressed-tensors, beside its source."""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
from spin import STORIES, TEXT, Case, main, oracle, settings, unpack  # noqa: E402


class AgainstOracle(Case):
    def test_as_transformers(self):
        out = self.path("out")
        self.good("quantize", "--model", STORIES, "--out", out, *settings("weights.group=channel"))
        r = self.good("eval", "--model", out, "--against", STORIES, "--text", TEXT, "--window", 128, "--limit", 6, "--json",
                      "--dtype", "fp32")
        (ours,) = r.json()["perplexity"]
        theirs = oracle(unpack(out, self.path("hf")), STORIES, TEXT, 128, 6, script="against_oracle.py")
        self.assertLess(abs(theirs.pop("model_nll") - ours["nll"]), 1e-4)
        for key, want in theirs.items():
            self.assertLess(abs(ours["against"][key] - want), 1e-4, f"{key}: {ours['against'][key]}, not {want}")


if __name__ == "__main__":
    main()
