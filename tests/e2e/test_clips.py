#!/usr/bin/env python3
"""Clips by search or by number, and R3 from keys: the same bytes on any number of ranks and over stops; eval of the
archive finds them beside it, and what lacks them is refused by name; they lower what noise costs."""
import array
import json
import math
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import make_model  # noqa: E402
from spin import STORIES, TEXT, Case, main, settings, sha256, spin, tar_hashes  # noqa: E402

KEYS = ("activations.bits=4", "kv.bits=4", "rotate.online=[r3]")
SEARCH = ("activations.clip=search", "kv.clip=search", "rotate.r3=pca")
RANGE = "learn=[{objective: range, steps: 5, rows: 512}]"
CLIPS = ("input_layernorm.clip", "post_attention_layernorm.clip", "self_attn.clip_o", "mlp.clip", "self_attn.clip_k",
         "self_attn.clip_v")


def how(*more, learn=RANGE):
    return ["--calib", TEXT, *settings("calib.windows=4", "calib.window=96", "rotate.start=pca", *KEYS, learn, *more)]


def rotations(out):
    return os.path.join(out, "rotations.safetensors")


def hashes(out):
    return {**tar_hashes(out), "rotations": sha256(rotations(out))}


def tensors(out):
    found, _ = make_model.read_safetensors(rotations(out))
    return {k: (t[1], list(array.array("d", t[2]))) for k, t in found.items()}


class Clips(Case):
    def quantize(self, name, *args, **kw):
        out = self.path(name)
        self.good("quantize", "--model", STORIES, "--out", out, *args, **kw)
        return out

    def test_ranks_and_kills(self):
        """With scales before and a phase of the whole model after; the run that is killed goes on where it was."""
        more = (*SEARCH, "scale.pairs=[norm, qk, ud]", "scale.start=closed")
        learn = RANGE[:-2] + ", draw: importance}, {objective: ce, steps: 2, batch: 2, window: 96}]"
        want = None
        for ranks, threads in ((0, 1), (1, 2), (2, 1), (3, 1), (4, 1)):
            out = self.quantize(f"r{ranks}-{threads}", *how(*more, learn=learn), ranks=ranks, threads=threads)
            want = want or hashes(out)
            self.assertEqual(want, hashes(out), f"{ranks} ranks, {threads} threads")
        for commit in (2, 4, 5):  # the N-th file that is put in its place
            out = self.path(f"kill{commit}")
            args = ["quantize", "--model", STORIES, "--out", out, *how(*more, learn=learn)]
            spin(*args, env={"SPINSHARD_FAULT": f"rename:{commit}:0:kill"})
            self.good(*args, ranks=2)
            self.assertEqual(want, hashes(out), f"killed at {commit}")

    def test_what_is_found(self):
        out = self.quantize("out", *how(*SEARCH))
        found = tensors(out)
        layers, heads, d = 5, 4, 8
        for i in range(layers):
            for key in CLIPS:
                shape, ends = found[f"model.layers.{i}.{key}"]
                self.assertEqual(shape, [2])
                self.assertTrue(all(0.67 <= e <= 1.05 for e in ends), (key, ends))
            shape, R3 = found[f"model.layers.{i}.self_attn.R3"]
            self.assertEqual(shape, [heads, d, d])
            for h in range(heads):
                M = [R3[(h * d + r) * d:(h * d + r + 1) * d] for r in range(d)]
                off = max(abs(sum(M[k][a] * M[k][b] for k in range(d)) - (a == b)) for a in range(d) for b in range(d))
                self.assertLess(off, 1e-12)
        table = [r for x in self.good("inspect", out, "--sites", "--json").json()["noise"] for r in x["noise"]]
        self.assertEqual(len(table), layers * 6)
        for row in table:
            self.assertLessEqual(row["nats"], row["nats_unclipped"])
            self.assertTrue(math.isfinite(row["nats"]) and row["nats"] >= 0)
        self.assertLess(sum(r["nats"] for r in table), sum(r["nats_unclipped"] for r in table))
        self.assertIn("mlp", self.good("inspect", out, "--sites").out)
        self.good("verify", out, "--source", STORIES, "--equivalence")

    def test_eval(self):
        """The archive with what lies beside it; the source with the file; numbers said in their place."""
        words = how(*SEARCH, "weights.bits=8", "weights.group=channel")
        out = self.quantize("out", *words)
        beside = self.perplexity(out, TEXT, 96)["nll"]
        source = self.perplexity(STORIES, TEXT, 96, "--rotations", rotations(out), *settings(*KEYS))["nll"]
        said = self.perplexity(STORIES, TEXT, 96, "--rotations", rotations(out), *settings(*KEYS, *SEARCH))["nll"]
        self.assertEqual(source, said)  # a recipe that says nothing takes what the file has
        none = ("activations.clip={}", "kv.clip={}")
        plain = self.perplexity(STORIES, TEXT, 96, "--rotations", rotations(out), *settings(*KEYS, *none))["nll"]
        self.assertNotEqual(source, plain)
        full = self.perplexity(STORIES, TEXT, 96)["nll"]
        self.assertLess(abs(beside - source), 0.5 * abs(source - full))
        os.rename(rotations(out), self.path("elsewhere.safetensors"))
        self.bad((2, 3), ["rotations"], "eval", "--model", out, "--text", TEXT, "--window", 96)
        self.assertEqual(beside, self.perplexity(out, TEXT, 96, "--rotations", self.path("elsewhere.safetensors"))["nll"])

    def test_numbers(self):
        """Numbers by place are kept as they are, in the file and in the archive's notes; GPTQ and phases see them."""
        ends = ("activations.clip={attn: [0.88, 0.97], down: 0.75}", "kv.clip=0.95", "rotate.r3=signs")
        out = self.quantize("out", *how(*ends, "weights.method=gptaq", "weights.stream=quantized"), ranks=2)
        found = tensors(out)
        want = {"input_layernorm.clip": [0.88, 0.97], "post_attention_layernorm.clip": [1, 1], "self_attn.clip_o": [1, 1],
                "mlp.clip": [0.75, 0.75], "self_attn.clip_k": [0.95, 0.95], "self_attn.clip_v": [0.95, 0.95]}
        for i in range(5):
            for key, value in want.items():
                self.assertEqual(found[f"model.layers.{i}.{key}"][1], value)
            R3 = found[f"model.layers.{i}.self_attn.R3"][1]
            self.assertTrue(all(abs(abs(v) - 8 ** -0.5) < 1e-12 for v in R3))
        with open(os.path.join(out, "manifest.json")) as f:
            recipe = json.load(f)["recipe"]
        self.assertEqual(recipe["activations"]["clip"], {"attn": [0.88, 0.97], "down": 0.75})
        self.assertEqual(recipe["rotate"]["r3"], "signs")
        again = self.quantize("again", *settings(f"rotate.start={rotations(out)}", *KEYS), ranks=1)
        self.assertEqual({k: v for k, v in tensors(again).items() if "clip" in k or "R3" in k},
                         {k: v for k, v in found.items() if "clip" in k or "R3" in k})
        said = self.quantize("said", *settings(f"rotate.start={rotations(out)}", *KEYS, *ends[:2]), ranks=1)
        self.assertEqual(self.perplexity(again, TEXT, 96)["nll"], self.perplexity(said, TEXT, 96)["nll"])

    def test_refused(self):
        for words in (("activations.clip=search",), ("kv.clip=search",), ("rotate.r3=pca",)):
            self.bad(2, ["--rotations FILE"], "eval", "--model", STORIES, "--text", TEXT, "--window", 96,
                     *settings(*KEYS, *words))


if __name__ == "__main__":
    main()
