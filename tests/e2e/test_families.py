#!/usr/bin/env python3
"""Each family of models that can be read, against its class in transformers (tests/tools/family_oracle.py makes the models):
logits in fp64; learned, rotated, scaled, rounded by GPTQ, with the same bytes on 1 to 4 ranks and after kills; the archive
loaded by the same class. Skips without a Python for oracles."""
import array
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
from spin import TEXT, Case, main, oracle, result_hashes, settings, skip, spin, unpack  # noqa: E402

if not os.environ.get("SPINSHARD_ORACLE_PYTHON"):
    skip("SPINSHARD_ORACLE_PYTHON names no Python with torch and transformers")

# All that is learned and folded: R1, R2, scales of norms and of the three pairs; then GPTQ.
RECIPE = settings("learn=[{objective: range, steps: 2, rows: 256}, {objective: ce, steps: 1, batch: 2, window: 64}]",
                  "scale.pairs=[norm, vo, qk, ud]", "scale.start=closed", "activations.bits=4", "kv.bits=4",
                  "weights.method=gptq", "weights.bits=8", "weights.group=channel", "calib.windows=2", "calib.window=64",
                  "rotate.r2=head")
PLAIN = settings("activations.bits=16", "kv.bits=16")
LINEARS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
           "mlp.down_proj"]


class Families(Case):
    @classmethod
    def setUpClass(cls):
        cls.work = tempfile.mkdtemp(prefix="spinshard-")
        cls.addClassCleanup(shutil.rmtree, cls.work, True)
        cls.models = oracle(cls.work, script="family_oracle.py")

    def folder(self, model):
        return os.path.join(self.work, model["name"])

    def test_logits(self):
        """In fp64; the difference of a row against its norm."""
        for model in self.models:
            folder = self.folder(model)
            with open(os.path.join(folder, "ids.bin"), "rb") as f:
                got = subprocess.run([os.environ["SPINSHARD_TOOL_LOGITS"], folder, str(model["ids"])], stdin=f, check=True,
                                     capture_output=True).stdout
            with open(os.path.join(folder, "logits.bin"), "rb") as f:
                ours, theirs = array.array("d", got), array.array("d", f.read())
            self.assertEqual(len(ours), len(theirs))
            vocab, worst = len(ours) // model["ids"], 0
            for t in range(0, len(ours), vocab):
                off = math.dist(ours[t:t + vocab], theirs[t:t + vocab])
                worst = max(worst, off / math.hypot(*theirs[t:t + vocab]))
            print(f"\n{model['name']}: logits off by {worst:.2g}", end="")
            self.assertLess(worst, 1e-10, model["name"])

    def test_quantized(self):
        for i, model in enumerate(self.models):
            with self.subTest(model["name"]):
                self.quantize(i, model, self.folder(model))

    def quantize(self, i, model, source):
        name = model["name"]
        out, again = self.path(name), self.path(name + "-again")
        self.good("quantize", "--model", source, "--out", out, "--calib", TEXT, *RECIPE, ranks=1 + i % 2)
        if "-" not in name:  # one of each class: on 3 and 4 ranks, killed while it learns and in GPTQ
            how = ["quantize", "--model", source, "--out", again, "--calib", TEXT, *RECIPE]
            for unit, phase in ((2, "learn.0"), (6, "gptq")):
                killed = spin(*how, ranks=3 + i % 2, env={"SPINSHARD_FAULT": f"unit:{unit}:0:kill"})
                self.assertNotEqual(killed.rc, 0, killed)
                with open(os.path.join(again, "events.jsonl"), encoding="utf8") as f:
                    told = [json.loads(line) for line in f if line.endswith("}\n")]
                self.assertEqual([e["phase"] for e in told if "phase" in e][-1], phase)
            self.good(*how, ranks=3 + i % 2)
            self.assertEqual(result_hashes(out), result_hashes(again), "the same bytes on any number of ranks")
        self.good("verify", out, "--source", source, "--equivalence")
        hf = unpack(out, out + "-hf")
        self.all_rounded(source, hf)
        ours = self.perplexity(out, TEXT, 64, "--limit", 8, "--dtype", "fp32", *PLAIN)
        theirs = oracle(hf, TEXT, 64, 8)
        print(f"\n{name}: perplexity {ours['ppl']:.6g}, {theirs['ppl']:.6g} by {theirs['class']}", end="")
        self.assertEqual((theirs["class"], theirs["windows"]), (model["class"], ours["windows"]))
        self.assertLess(abs(ours["ppl"] / theirs["ppl"] - 1), 1e-3)
        of_source = self.perplexity(source, TEXT, 64, "--limit", 8, "--dtype", "fp32")["ppl"]
        self.assertLess(abs(ours["ppl"] / of_source - 1), 0.05, "8 bits keep the model")

    def test_dynamic(self):
        """Beyond max_position_embeddings the frequencies of rope scaling dynamic depend on the length of a window."""
        words = ["eval", "--model", os.path.join(self.work, "llama-dynamic"), "--text", TEXT, "--limit", 1]
        self.bad(3, ["dynamic", "shorter windows"], *words, "--window", 257)
        self.good(*words, "--window", 256)

    def all_rounded(self, source, hf):
        """Every linear of every layer is stored as codes, and nothing but them."""
        with open(os.path.join(hf, "model.safetensors.index.json"), encoding="utf8") as f:
            held = json.load(f)["weight_map"]
        with open(os.path.join(source, "config.json"), encoding="utf8") as f:
            layers = json.load(f)["num_hidden_layers"]
        packed = {f"model.layers.{n}.{w}.weight_packed" for n in range(layers) for w in LINEARS}
        self.assertEqual({n for n in held if n.endswith("weight_packed")}, packed)
        self.assertFalse({n.removesuffix("_packed") for n in packed} & set(held))


if __name__ == "__main__":
    main()
