#!/usr/bin/env python3
"""What GPTQ tells of each layer and linear, in events.jsonl and `inspect --errors`, against a computation from files
alone (tests/tools/gptq_oracle.py): errors of outputs before and after, damping. Skips without a Python for oracles."""
import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import make_model  # noqa: E402
from kills import events  # noqa: E402
from spin import STORIES, TEXT, Case, main, oracle, settings, skip, unpack  # noqa: E402

if not os.environ.get("SPINSHARD_ORACLE_PYTHON"):
    skip("SPINSHARD_ORACLE_PYTHON names no Python with torch and transformers")

DAMP = 0.01
# Our inputs come from products in bf16 (2^-9 of an entry), a few layers deep; theirs from fp32.
ERRORS, DAMPING = 0.01, 0.01


class GptqOracle(Case):
    def compare(self, model, windows, length, *how, inputs=()):
        out = self.path("out")
        self.good("quantize", "--model", model, "--calib", TEXT, "--out", out, ranks=2,
                  *settings("weights.method=gptq", "weights.bits=4", f"weights.damp={DAMP}", "rotate.r1=false", "rotate.r2=none",
                            f"calib.windows={windows}", f"calib.window={length}", *how))
        layers = self.good("inspect", out, "--errors", "--json").json()["layers"]
        told = [e for e in events(out) if e["event"] == "errors"]
        self.assertEqual([e["tensors"] for e in told], [layer["tensors"] for layer in layers])
        for e in told:
            self.assertTrue(0 < sum(e["steps"]) <= e["seconds"] < e["t"], e)
        want = oracle(model, unpack(out, self.path("hf")), TEXT, windows, length, *inputs, script="gptq_oracle.py")
        got = {t["tensor"]: t for layer in layers for t in layer["tensors"]}
        self.assertEqual(sorted(got), sorted(want))
        worst = 0
        for name, t in got.items():
            w = want[name]
            for key in ("before", "after"):
                worst = max(worst, abs(t[key] / w[key] - 1))
                self.assertLess(abs(t[key] / w[key] - 1), ERRORS, f"{name} {key} {t} {w}")
            self.assertEqual((t["rows"], t["raises"]), (w["rows"], 0))
            self.assertLessEqual(t["fell_back"], w["nearest_rows"], f"{name}: rows that fell back are rounded to nearest")
            damping = DAMP * max(1, w["columns"] / (windows * length)) * w["mean_diagonal"]
            self.assertLess(abs(t["damping"] / damping - 1), DAMPING, f"{name} {t} {damping}")
        print(f"\n{len(got)} linears, largest difference of an error {100 * worst:.2f} %")

    def test_channel(self):
        self.compare(STORIES, 12, 128, "weights.group=channel")

    def test_clipped_inputs(self):
        """The stream of quantized inputs, clipped by place with both ends apart, behind the gains of norms, since nothing
        rotates: their moments are those of the modules' own inputs, rounded there by definition. Of 8 bits, whose steps are
        about as small as those of bf16: what differs is not made larger by codes that flip."""
        clips = {"attn": [0.7, 0.6], "mlp": [0.5, 0.7], "o": [0.6, 0.6], "down": [0.8, 0.6]}
        self.compare(STORIES, 12, 128, "weights.group=channel", "weights.stream=quantized", "activations.bits=8",
                     "activations.o_group=token", f"activations.clip={json.dumps(clips)}", inputs=(8, json.dumps(clips)))

    def test_group_and_order(self):
        self.compare(make_model.make(self.path("m"), "--biases"), 6, 256, "weights.group=32", "weights.scale=search",
                     "weights.act_order=true")

    def test_few_tokens(self):
        """Damping in proportion to what is lacking: 2 x 40 tokens for matrices of 64 and 172 columns."""
        self.compare(STORIES, 2, 40, "weights.group=channel")


if __name__ == "__main__":
    main()
