#!/usr/bin/env python3
"""Inputs of 8 bits by place and layer: as the recipe names them, and as they are chosen by their noise under an average.

The same bytes on any number of ranks and after kills; the archive says them in config_groups, eval, inspect and the card
in turn; learning and GPTQ see them."""
import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import make_model  # noqa: E402
from spin import STORIES, TEXT, Case, main, settings, sha256, spin, tar_hashes, unpack, without_notes  # noqa: E402

SERVED = ("activations.bits=4", "activations.symmetric=true", "activations.o_group=token", "weights.group=channel")
RANGE = "learn=[{objective: range, steps: 3, rows: 512}]"
TEXTS = ("calib.windows=3", "calib.window=96")
# Of stories260K: weights that read the input of each place in one layer.
PRODUCTS = {"attn": 64 * (64 + 2 * 32), "mlp": 64 * 2 * 172, "o": 64 * 64, "down": 172 * 64}
LAYERS = 5


def hashes(out):
    return {**tar_hashes(out), "rotations": sha256(os.path.join(out, "rotations.safetensors"))}


def layers_of(value):
    """Layers of one place, as the recipe and inspect say them."""
    out = set()
    for item in value if isinstance(value, list) else [value]:
        first, _, last = ("0", "", str(LAYERS - 1)) if item == "all" else str(item).partition("-")
        out |= set(range(int(first), int(last or first) + 1))
    return out


def said(out):
    with open(os.path.join(out, "manifest.json")) as f:
        return json.load(f)["recipe"]["activations"]["eight"]


def eight_of(out):
    return {(place, layer) for place, value in said(out).items() for layer in layers_of(value)}


class Eight(Case):
    def quantize(self, name, *words, **how):
        out = self.path(name)
        self.good("quantize", "--model", STORIES, "--out", out, "--calib", TEXT, *settings(*TEXTS, *words), **how)
        return out

    def noise(self, out):
        """{(place, layer): (bits, nats)} of inputs."""
        told = self.good("inspect", out, "--sites", "--json").json()["noise"]
        return {(r["site"], x["layer"]): (r["bits"], r["nats"]) for x in told for r in x["noise"] if r["site"] in PRODUCTS}

    def test_named(self):
        """Through the archive and its folder, with and without our own notes; named otherwise it is the same."""
        out = self.path("out")
        self.good("quantize", "--model", STORIES, "--out", out, *settings(*SERVED, "activations.eight={mlp: 1-3, down: [0, 4]}"))
        plain = self.path("plain")
        self.good("quantize", "--model", STORIES, "--out", plain, *settings(*SERVED))
        told = self.good("inspect", out, "--json").json()["weights"]
        self.assertEqual(told["input_bits_8"], {"mlp": "1-3", "down": [0, 4]})
        self.assertIn('of mlp INT8 in layers "1-3"', self.good("inspect", out).out)
        folder = unpack(out, out + "-hf")
        with open(os.path.join(folder, "README.md")) as f:
            self.assertIn("- Inputs of `gate_proj`, `up_proj` in layers 1-3: 8 bits.", f.read())
        ours = self.perplexity(out)
        self.assertNotEqual(ours["nll"], self.perplexity(plain)["nll"])
        self.assertEqual(ours["nll"], self.perplexity(plain, TEXT, 128, *settings("activations.eight={down: [4, 0], mlp: [1, 2-3]}"))["nll"])
        self.assertEqual(ours["nll"], self.perplexity(folder)["nll"])
        without_notes(folder)
        same = settings("activations.scale=published")  # which the groups do not say
        self.assertEqual(ours["nll"], self.perplexity(folder, TEXT, 128, *same)["nll"])
        self.good("verify", out, "--source", STORIES, "--equivalence")
        notes = self.good("inspect", out, "--json").json()["runtimes"]["vllm-cuda"]["notes"]
        self.assertTrue(any("4-bit inputs" in x for x in notes) and any("inputs stay at 16 bits but" in x for x in notes))
        whole = self.perplexity(plain, TEXT, 128, *settings("activations.eight={attn: all, mlp: all, o: all, down: all}"))
        self.assertEqual(whole["nll"], self.perplexity(plain, TEXT, 128, *settings("activations.bits=8"))["nll"])

    def test_loss_of_range(self):
        """The objective is linear in the weights of its sites: with noise 289 times less (15^2 and 255^2 levels) at one kind,
        the other, and both, it is what it is by parts. To the rounding of the fixed-point sums over 512 rows."""
        def loss(*eight):
            out = self.quantize("-".join(("l", *eight)), "activations.bits=4", "rotate.r2=none", RANGE,
                                "activations.eight={" + ", ".join(f"{p}: all" for p in eight) + "}")
            with open(os.path.join(out, "events.jsonl")) as f:
                steps = [json.loads(line) for line in f]
            return next(x["loss"] for x in steps if x.get("event") == "step" and x["step"] == 1)
        none, attn, mlp, both = loss(), loss("attn"), loss("mlp"), loss("attn", "mlp")
        self.assertAlmostEqual((attn + mlp) / (none * (1 + 1 / 289)), 1, delta=1e-4)
        self.assertAlmostEqual(both / none * 289, 1, delta=1e-2)
        self.assertGreater(min(attn, mlp) / none, 0.05)

    def test_chosen(self):
        """By what a bit of a multiplication saves, up to the average; said in the archive as if the recipe had named it."""
        words = (*SERVED, RANGE, "weights.method=gptaq", "weights.stream=quantized")
        out, plain = self.quantize("out", *words, "activations.average=5"), self.quantize("plain", *words, "activations.average=4")
        chosen, all_products = eight_of(out), LAYERS * sum(PRODUCTS.values())
        self.assertEqual(eight_of(plain), set())
        bits = sum(PRODUCTS[p] * (8 if (p, layer) in chosen else 4) for p in PRODUCTS for layer in range(LAYERS)) / all_products
        self.assertTrue(5 - 4 * max(PRODUCTS.values()) / all_products < bits <= 5, bits)
        now, before = self.noise(out), self.noise(plain)
        self.assertEqual({k for k, v in now.items() if v[0] == 8}, chosen)
        for k in chosen:  # 17 times as many steps to a range; the rest is as it was
            self.assertLess(now[k][1], before[k][1] / 100)
        self.assertEqual({k: v for k, v in now.items() if k not in chosen}, {k: v for k, v in before.items() if k not in chosen})
        # one that was left out is worth less than all that were taken, or no longer fits
        worth = {k: v[1] / PRODUCTS[k[0]] for k, v in before.items()}
        room = (5 - bits) * all_products / 4
        for k in set(worth) - chosen:
            self.assertTrue(worth[k] < 1.01 * min(worth[c] for c in chosen) or PRODUCTS[k[0]] > room)
        # GPTAQ's stream saw the bits: with the same R1 it is what a run makes of them when they are named
        named = self.quantize("named", *SERVED, *words[-2:], "rotate.start=" + os.path.join(out, "rotations.safetensors"),
                              "activations.eight=" + json.dumps(said(out)))
        self.assertEqual(self.perplexity(named)["nll"], self.perplexity(out)["nll"])
        unseen = self.quantize("unseen", *SERVED, *words[-2:], "rotate.start=" + os.path.join(out, "rotations.safetensors"))
        eight = settings("activations.eight=" + json.dumps(said(out)))
        self.assertNotEqual(self.perplexity(unseen, TEXT, 128, *eight)["nll"], self.perplexity(out)["nll"])
        folder = unpack(out, out + "-hf")
        self.assertEqual(self.perplexity(out)["nll"], self.perplexity(folder)["nll"])
        self.good("verify", out, "--source", STORIES, "--equivalence")
        self.assertIn("complete", self.good("quantize", "--model", STORIES, "--out", out, "--calib", TEXT,
                                            *settings(*TEXTS, *words, "activations.average=5")).err)

    def test_ranks_and_kills(self):
        more = ("activations.bits=4", "kv.bits=4", "activations.clip=search", "activations.eight={o: 2}", "activations.average=5.5",
                "weights.method=gptq", "weights.stream=quantized",
                RANGE[:-1] + ", {objective: ce, steps: 2, batch: 2, window: 96}]")
        want = None
        for ranks, threads in ((0, 2), (2, 1), (3, 1)):
            out = self.quantize(f"r{ranks}", *more, ranks=ranks, threads=threads)
            want = want or hashes(out)
            self.assertEqual(want, hashes(out), f"{ranks} ranks, {threads} threads")
        self.assertIn(("o", 2), eight_of(out))
        for commit in (3, 5, 7):  # before the choice is kept, after it, and in GPTQ
            out = self.path(f"kill{commit}")
            args = ["quantize", "--model", STORIES, "--out", out, "--calib", TEXT, *settings(*TEXTS, *more)]
            spin(*args, env={"SPINSHARD_FAULT": f"rename:{commit}:0:kill"})
            self.good(*args, ranks=2)
            self.assertEqual(want, hashes(out), f"killed at {commit}")

    def test_refused(self):
        model = ("quantize", "--model", STORIES, "--out", self.path("no"))
        for words, what in ((("activations.eight={mlp: 1-3}",), "16 bits without it"),
                            (("activations.bits=8", "activations.eight={mlp: 1}"), "8 bits without it"),
                            (("activations.bits=4", "activations.down_bits=16", "activations.eight={down: 1}"), "down"),
                            (("activations.bits=4", "activations.eight={mlp: 3-5}"), "layer 5, and the model has 5"),
                            (("activations.bits=4", "activations.eight={gate: 1}"), "a map of attn|mlp|o|down to layers"),
                            (("activations.bits=4", "activations.eight={mlp: all}", "activations.average=4.5"), "on average"),
                            (("activations.average=5",), "16 bits without it")):
            self.bad(2, ["activations.", what], *model, "--calib", TEXT, *settings(*words))
        self.bad(2, ["layer 7"], "eval", "--model", STORIES, "--text", TEXT, "--window", 64,
                 *settings("activations.bits=4", "activations.eight={o: 7}"))


if __name__ == "__main__":
    main()
