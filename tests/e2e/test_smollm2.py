#!/usr/bin/env python3
# ctest label: slow
"""A real LLM with real outliers: SmolLM2-135M, WikiText-2 valid, against figures of an independent implementation.

Needs SPINSHARD_SMOLLM2 (tests/run.sh fetches the model) and text/wikitext2-valid.txt in SPINSHARD_SHARED.
The full-precision figure is exact; the 4-bit ones differ between seeds and their ranges are those of three seeds
of the other implementation, widened by the spread between them.
"""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
from spin import SHARED, Case, main, settings, skip  # noqa: E402

MODEL = os.environ.get("SPINSHARD_SMOLLM2", "")
TEXT = os.path.join(SHARED, "text", "wikitext2-valid.txt")
if not os.path.isfile(os.path.join(MODEL, "model.safetensors")):
    skip("SPINSHARD_SMOLLM2 names no folder with SmolLM2")
if not os.path.isfile(TEXT):
    skip("no text/wikitext2-valid.txt in SPINSHARD_SHARED")

A4 = settings("activations.bits=4", "kv.bits=4")
ONLINE = "rotate.online=[r3, r4]"


class SmolLM2(Case):
    def ppl(self, model, *more, limit=40, ranks=2):
        return self.perplexity(model, TEXT, 1024, "--limit", limit, *more, ranks=ranks, limit=900)["ppl"]

    def perplexity(self, model, text, window, *more, limit=900, **how):
        r = self.good("eval", "--model", model, "--text", text, "--window", window, "--json", *more, limit=limit, **how)
        return r.json()["perplexity"][0]

    def quantize(self, name, *more):
        out = self.path(name)
        self.good("quantize", "--model", MODEL, "--out", out, *settings(*more), ranks=2, limit=600)
        return out

    def test_full_precision(self):
        self.assertAlmostEqual(self.ppl(MODEL, "--dtype", "fp32") / 18.499, 1, delta=0.0005)
        self.assertAlmostEqual(self.ppl(MODEL, "--dtype", "bf16") / 18.499, 1, delta=0.005)

    def test_without_rotation_4_bits_fail(self):
        got = self.ppl(MODEL, *A4, *settings("rotate.r1=false", "rotate.r2=none"), limit=4)
        self.assertGreater(got, 10 * 18.499)  # 526

    def test_random_hadamard_w16a4kv4(self):
        got = self.ppl(MODEL, *settings("rotate.r2=layer", ONLINE), *A4)
        self.assertTrue(28.3 < got < 29.8, got)  # 28.79, 29.09, 29.23

    def test_random_hadamard_w4(self):
        out = self.quantize("rotated", "weights.group=64", "weights.scale=search", "rotate.r2=layer", ONLINE)
        w4 = self.ppl(out)
        self.assertTrue(32.5 < w4 < 36, w4)  # 34.17
        w4a4 = self.ppl(out, *A4)
        self.assertTrue(60 < w4a4 < 75, w4a4)  # 66.9
        self.good("verify", out, "--source", MODEL, "--equivalence", ranks=2, limit=900)


if __name__ == "__main__":
    main()
