#!/usr/bin/env python3
"""Scales of pairs: the same bytes on any number of ranks and over stops; the function of the model does not change,
in the archive and in eval; they lower the loss they are made for; bad files refused."""
import array
import json
import math
import os
import random
import shutil
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import make_model  # noqa: E402
from spin import STORIES, TEXT, Case, finish, main, settings, sha256, start, tar_hashes  # noqa: E402

W4A4 = ("activations.bits=4", "kv.bits=4", "rotate.online=[r3]")
ALL = "scale.pairs=[norm, vo, qk, ud]"
FP32 = ["--dtype", "fp32"]


def how(pairs=ALL, learn="[{objective: range, steps: 10, rows: 512}]", more=()):
    return ["--calib", TEXT, *settings("calib.windows=4", "calib.window=96", "rotate.start=pca", *W4A4, f"learn={learn}",
                                       pairs, "scale.start=closed", *more)]


def hashes(out):
    return {**tar_hashes(out), "rotations": sha256(os.path.join(out, "rotations.safetensors"))}


def doubles(tensor):
    assert tensor[0] == "F64"
    return array.array("d", tensor[2])


def names(layers):
    per_layer = ("input_layernorm.S", "post_attention_layernorm.S", "self_attn.S_vo", "self_attn.S_qk", "mlp.S_ud")
    return {f"model.layers.{i}.{k}" for i in range(layers) for k in per_layer}


def config(model):
    with open(os.path.join(model, "config.json")) as f:
        return json.load(f)


class Scales(Case):
    def scale_file(self, model, name, seed=1, change=None, spread=0.7):
        """Rotations of a quick run of the model, with log-normal scales of every kind."""
        out, draw, c = self.path("start-" + name), random.Random(seed), config(model)
        self.good("quantize", "--model", model, "--out", out, *settings("rotate.start=had", "rotate.r2=layer"))
        tensors, meta = make_model.read_safetensors(os.path.join(out, "rotations.safetensors"))
        heads, d = c["num_key_value_heads"], c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
        for key in sorted(names(c["num_hidden_layers"])):
            shape = ([heads, d] if "self_attn" in key else [c["intermediate_size"]] if "mlp" in key else [c["hidden_size"]])
            v = [math.exp(draw.gauss(0, spread)) for _ in range(math.prod(shape))]
            if key.endswith("S_qk"):
                for j in range(len(v)):
                    v[j] = v[j - d // 2] if j % d >= d // 2 else v[j]
            tensors[key] = ["F64", shape, v]
        if change:
            change(tensors)
        for key, t in tensors.items():
            if isinstance(t, list):
                tensors[key] = (t[0], t[1], array.array("d" if t[0] == "F64" else "f", t[2]).tobytes())
        path = self.path(name + ".safetensors")
        make_model.write_safetensors(path, tensors, meta)
        return path

    def test_ranks(self):
        first = None
        for ranks, threads in ((0, 1), (1, 2), (2, 1), (3, 1), (4, 1)):
            out = self.path(f"r{ranks}-{threads}")
            self.good("quantize", "--model", STORIES, "--out", out, *how(), ranks=ranks, threads=threads)
            first = first or hashes(out)
            self.assertEqual(first, hashes(out), f"{ranks} ranks, {threads} threads")
        tensors, _ = make_model.read_safetensors(os.path.join(out, "rotations.safetensors"))
        self.assertLessEqual(names(5), set(tensors))
        for key in names(5):
            v = doubles(tensors[key])
            self.assertTrue(all(0.015 <= s <= 65 for s in v), key)
            self.assertGreater(max(v) / min(v), 1.05, key)
            self.assertAlmostEqual(sum(map(math.log, v)) / len(v), 0, delta=0.005)  # norms are rounded
        self.good("verify", out, "--source", STORIES, "--equivalence", ranks=2)

    def test_before_phases_of_the_whole_model(self):
        """range, scales, ce: on 1 and 3 ranks; without range too."""
        both = "[{objective: range, steps: 5, rows: 512}, {objective: ce, steps: 2, batch: 2, window: 96}]"
        for name, learn in (("both", both), ("ce", "[{objective: ce, steps: 2, batch: 2, window: 96}]"), ("none", "[]")):
            got = set()
            for ranks in (1, 3):
                out = self.path(f"{name}{ranks}")
                self.good("quantize", "--model", STORIES, "--out", out, *how(learn=learn), ranks=ranks)
                got.add(json.dumps(hashes(out)))
            self.assertEqual(len(got), 1, name)
            self.good("verify", out, "--source", STORIES, "--equivalence")

    def test_kills_and_stops(self):
        learn = "[{objective: range, steps: 200, rows: 2048}, {objective: ce, steps: 6, batch: 2, window: 96}]"
        want_out = self.path("want")
        self.good("quantize", "--model", STORIES, "--out", want_out, *how(learn=learn), ranks=2)
        want, draw = hashes(want_out), random.Random(7)
        for kind in (signal.SIGKILL, signal.SIGTERM):
            out = self.path(f"got{int(kind)}")
            for cut in range(30):
                p = start(["quantize", "--model", STORIES, "--out", out, *how(learn=learn)], ranks=draw.choice((1, 2, 3)))
                if cut < 8:
                    time.sleep(0.3 + draw.random())
                    os.killpg(p.pid, kind) if kind == signal.SIGKILL else p.terminate()
                r = finish(p)
                if r.rc == 0:
                    break
                if kind == signal.SIGKILL:
                    time.sleep(0.3)
            self.assertEqual(want, hashes(out))

    def test_function(self):
        """Any positive scales from a file: the fused model is the same function, tied or not, with biases; and the
        scales of norms stand in the archive as gains."""
        for name, model in (("tied", STORIES), ("biases", make_model.make(self.path("m"), "--biases", "--untied")),
                            ("half", make_model.make(self.path("h"), "--dtype", "F16"))):
            path, out = self.scale_file(model, name), self.path(name)
            words = settings(f"rotate.start={path}", "weights.bits=8", "weights.group=32" if name != "tied" else "weights.group=channel")
            self.good("quantize", "--model", model, "--out", out, *words, ranks=2)
            r = self.good("verify", out, "--source", model, "--equivalence", "--json", ranks=2)
            self.assertLess(r.json()["equivalence"], 1e-4)
            plain = self.perplexity(model, TEXT, 96, *FP32)["nll"]
            self.assertAlmostEqual(self.perplexity(model, TEXT, 96, *FP32, "--rotations", path)["nll"], plain, delta=1e-6)
            self.assertAlmostEqual(self.perplexity(out, TEXT, 96, *FP32)["nll"], plain, delta=0.05)
            # what was kept is what was given, norms to the nearest bf16 gain
            given, _ = make_model.read_safetensors(path)
            kept, _ = make_model.read_safetensors(os.path.join(out, "rotations.safetensors"))
            for key in names(config(model)["num_hidden_layers"]):
                for a, b in zip(doubles(given[key]), doubles(kept[key])):
                    self.assertLessEqual(abs(a / b - 1), 2 ** -8 if "norm" in key else 0)

    def test_archive_and_rotations_agree(self):
        """8-bit weights and activations: eval of the archive, and of the source with sites, to what 8 bits cost."""
        path, out = self.scale_file(STORIES, "s", spread=0.3), self.path("out")
        words = settings(f"rotate.start={path}", "weights.bits=8", "activations.bits=8", "kv.bits=8", "rotate.online=[r3]")
        self.good("quantize", "--model", STORIES, "--out", out, *words)
        site = self.perplexity(STORIES, TEXT, 96, *FP32, "--rotations", path,
                               *settings("activations.bits=8", "kv.bits=8", "rotate.online=[r3]"))
        self.assertAlmostEqual(self.perplexity(out, TEXT, 96, *FP32)["nll"], site["nll"], delta=0.02)

    def test_better_than_without(self):
        """In the setting they are made for, a model with loud channels at the input of down, which no rotation reaches
        here: scales of up and down give most of what they cost back."""
        model, ppl = make_model.make_loud_down(self.path("m")), {}
        full = self.perplexity(model, TEXT, 96, *FP32)["nll"]
        self.assertAlmostEqual(self.perplexity(STORIES, TEXT, 96, *FP32)["nll"], full, delta=1e-5)
        for pairs in ("scale.pairs=[norm, ud]", None):
            out = self.path("b" + str(bool(pairs)))
            words = how(pairs) if pairs else how("scale.pairs=[]", more=("scale.start=ones",))
            self.good("quantize", "--model", model, "--out", out, *words, ranks=2)
            ppl[bool(pairs)] = self.perplexity(model, TEXT, 96, *FP32, "--rotations", os.path.join(out, "rotations.safetensors"),
                                               *settings(*W4A4))["nll"]
        self.assertLess(ppl[True] - full, 0.5 * (ppl[False] - full))

    def test_bad_input(self):
        def spoil(key, value, at=3):
            def change(t):
                t[key][2][at] = value
            return change

        def cut(t):
            t["model.layers.2.mlp.S_ud"][1][0] -= 1
            t["model.layers.2.mlp.S_ud"][2].pop()

        def drop(t):
            del t["model.layers.3.self_attn.S_vo"]

        for i, (change, says) in enumerate((
                (spoil("model.layers.1.input_layernorm.S", 0.0), "layers.1.input_layernorm.S.*scale 3 is 0"),
                (spoil("model.layers.0.mlp.S_ud", -2.0), "is -2"),
                (spoil("model.layers.0.mlp.S_ud", math.nan), "nan"),
                (spoil("model.layers.4.self_attn.S_vo", math.inf), "inf"),
                (spoil("model.layers.0.mlp.S_ud", 1e30), r"1e\+30"),
                (spoil("model.layers.0.self_attn.S_qk", 9.0, 1), "RoPE pair"),
                (cut, "layers.2.mlp.S_ud.*expected"),
                (drop, "layers.3.self_attn.S_vo.*missing"))):
            with self.subTest(says):
                path, out = self.scale_file(STORIES, f"bad{i}", change=change), self.path(f"o{i}")
                self.bad(3, [says], "quantize", "--model", STORIES, "--out", out, *settings(f"rotate.start={path}"), out=out, ranks=2)
                self.bad(3, [says], "eval", "--model", STORIES, "--text", TEXT, "--window", 96, "--rotations", path)
        for words, says in ((("scale.start=smooth", ALL), "closed"), ((ALL,), "closed"), (("scale.start=closed",), "pairs"),
                            (("scale.start=closed", ALL, *W4A4), "--calib"), (("scale.pairs=[up]",), "norm")):
            with self.subTest(says):
                out = self.path("u")
                self.bad(2, [says], "quantize", "--model", STORIES, "--out", out, *settings(*words), out=out)
        self.bad(2, ["--rotations"], "eval", "--model", STORIES, "--text", TEXT, "--window", 96, *settings(ALL, "scale.start=closed"))


if __name__ == "__main__":
    main()
