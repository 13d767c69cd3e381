#!/usr/bin/env python3
"""The main job on the small real model: quantize, verify, eval, inspect, status."""
import json
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import make_model  # noqa: E402
from spin import STORIES, TEXT, Case, main, settings, sha256, spin, tars, unpack  # noqa: E402

CHANNEL = settings("weights.group=channel")


class MainJob(Case):
    def quantize(self, name="out", *more, model=STORIES, **how):
        out = self.path(name)
        self.good("quantize", "--model", model, "--out", out, *more, **how)
        return out

    def test_quantize_then_everything(self):
        out = self.quantize("out", *CHANNEL, ranks=2)
        with open(os.path.join(out, "manifest.json")) as f:
            manifest = json.load(f)
        self.assertEqual(manifest["format"], "spinshard-manifest/1")
        self.assertEqual({t["file"]: t["sha256"] for t in manifest["tars"]},
                         {n: sha256(os.path.join(out, n)) for n in tars(out)})
        self.assertEqual(sorted(n for n in os.listdir(out) if not n.endswith(".tar")),
                         ["events.jsonl", "manifest.json", "recipe.yaml", "report.html", "rotations.safetensors", "run.json"])
        self.good("verify", out)
        self.good("verify", out, "--source", STORIES, ranks=2)
        self.good("verify", out, "--source", STORIES, "--equivalence")
        for args in (["inspect", out], ["inspect", out, "--tensors"], ["status", out], ["inspect", STORIES],
                     ["inspect", os.path.join(out, tars(out)[0])],
                     ["inspect", os.path.join(STORIES, "model.safetensors")]):
            self.assertTrue(self.good(*args).out.strip(), args)
        for args in (["inspect", out, "--json"], ["status", out, "--json"], ["verify", out, "--json"]):
            self.assertIsInstance(self.good(*args).json(), dict, args)
        source, ours = self.perplexity(STORIES, TEXT, 128, "--dtype", "fp32"), self.perplexity(out)
        # transformers in float32 gives nll 1.79437560892 on these 14 windows
        self.assertAlmostEqual(source["nll"], 1.79437560892, delta=2e-5)
        self.assertEqual((source["windows"], source["tokens"]), (14, 1778))
        # Rounding to nearest per channel costs a tiny model much, but it stays far from guessing (512).
        self.assertTrue(source["ppl"] < ours["ppl"] < 60, (source, ours))

    def test_tar_gives_the_folder(self):
        out = self.quantize("out", *CHANNEL, "--set", "archive.shard_bytes=100K")
        self.assertGreater(len(tars(out)), 1)
        folder = unpack(out, self.path("hf"))
        files = set(os.listdir(folder))
        self.assertLessEqual({"config.json", "tokenizer.json", "tokenizer_config.json", "README.md",
                              "model.safetensors.index.json"}, files)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            self.assertEqual(sha256(os.path.join(folder, name)), sha256(os.path.join(STORIES, name)))
        with open(os.path.join(folder, "model.safetensors.index.json")) as f:
            shards = set(json.load(f)["weight_map"].values())
        self.assertEqual(shards, {n for n in files if n.endswith(".safetensors")})
        listing = subprocess.run(["tar", "-tvf", os.path.join(out, tars(out)[0]), "--numeric-owner", "--utc"],
                                 capture_output=True, text=True, check=True).stdout.splitlines()
        self.assertTrue(all(line.startswith("-rw-r--r-- 0/0") and " 1970-01-01 00:00 " in line
                            for line in listing), listing)
        self.assertTrue(listing[0].endswith("/config.json"))
        # what eval reads from the archive is what it reads from the unpacked folder
        self.assertEqual(self.perplexity(out, TEXT, 128, "--dtype", "fp32")["nll"],
                         self.perplexity(folder, TEXT, 128, "--dtype", "fp32")["nll"])

    def test_settings_reach_the_archive(self):
        model = make_model.make(self.path("m"), "--biases", "--untied", "--dtype", "BF16", "--shards", 2)
        for i, more in enumerate((["weights.group=64"], ["weights.group=32", "weights.symmetric=false"],
                                  ["weights.bits=8", "weights.scale=search"],
                                  ["rotate.r2=head", "rotate.online=[r3, r4]", "weights.group=64"],
                                  ["rotate.r1=false", "rotate.r2=none"])):
            with self.subTest(more):
                out = self.quantize(f"o{i}", *settings(*more), model=model, ranks=1 + i % 3)
                self.good("verify", out, "--source", model, "--equivalence")
        with open(os.path.join(unpack(self.path("o0"), self.path("hf")), "config.json")) as f:
            weights = json.load(f)["quantization_config"]["config_groups"]["group_0"]["weights"]
        self.assertEqual((weights["num_bits"], weights["group_size"], weights["strategy"]), (4, 64, "group"))

    def test_eight_bits_are_nearly_lossless(self):
        out = self.quantize("o8", "--set", "weights.bits=8", *CHANNEL)
        source, ours = (self.perplexity(m, TEXT, 128, "--dtype", "fp32")["nll"] for m in (STORIES, out))
        self.assertAlmostEqual(source, ours, delta=0.01)

    def test_recipe_feeds_back(self):
        out = self.quantize("a", *CHANNEL, "--seed", "7")
        again = self.quantize("b", "--recipe", os.path.join(out, "recipe.yaml"))
        other = self.quantize("c", *CHANNEL, "--seed", "8")
        self.assertEqual(*[[sha256(os.path.join(o, n)) for n in (*tars(o), "manifest.json")] for o in (out, again)])
        self.assertNotEqual(*[[sha256(os.path.join(o, n)) for n in tars(o)] for o in (out, other)])

    def test_rotations_file(self):
        out = self.quantize("a", *CHANNEL)
        rotations = os.path.join(out, "rotations.safetensors")
        plain = self.perplexity(STORIES, TEXT, 128, "--dtype", "fp32")
        # full precision: the rotation alone changes nothing
        turned = self.perplexity(STORIES, TEXT, 128, "--dtype", "fp32", "--rotations", rotations)
        self.assertAlmostEqual(plain["nll"], turned["nll"], delta=1e-5)
        four = settings("activations.bits=4", "kv.bits=4")
        self.assertGreater(self.perplexity(STORIES, TEXT, 128, *four, "--rotations", rotations)["nll"], plain["nll"])

    def test_help_and_version(self):
        for args in (["--help"], ["--version"], ["quantize", "--help"], ["eval", "--help"]):
            self.assertGreater(len(self.good(*args).out), 40, args)
        r = spin("quantise")
        self.assertEqual(r.rc, 2)
        self.assertRegex(r.err, "quantize")
        r = spin("eval", "--modle", STORIES)
        self.assertEqual(r.rc, 2)
        self.assertRegex(r.err, "--model")
        r = spin("quantize", "--model", STORIES, "--out", self.path("o"), "--set", "weights.bit=4")
        self.assertEqual(r.rc, 2)
        self.assertRegex(r.err, "weights.bits")


if __name__ == "__main__":
    main()
