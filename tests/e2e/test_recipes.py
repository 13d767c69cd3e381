#!/usr/bin/env python3
"""Every recipe of jobs/recipes on a small trained model with nothing but files: quantize, verify against the source,
inspect, eval. Learning is cut to a few steps and calibration to few windows; SPINSHARD_RECIPES=whole runs them as they
stand (many minutes)."""
import glob
import json
import os
import re
import shutil
import sys
import tarfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import make_model  # noqa: E402
from spin import STORIES, TESTS, TEXT, Case, main, settings, tars  # noqa: E402

FOLDER = os.path.join(os.environ.get("SPINSHARD_SOURCE", os.path.dirname(TESTS)), "jobs", "recipes")
WHOLE = os.environ.get("SPINSHARD_RECIPES") == "whole"
LAYERS, INTERMEDIATE = 5, 172  # of STORIES
WIDE = 256  # of which there is a Hadamard matrix
# of the perplexity, as a share: 5.65 of this model, 512 of one that knows nothing
MOST = {"w8a8": 0.02, "w4a16": 0.3, "w4a8": 0.3, "w4a4kv4": 2}
FEW = (("steps", 3), ("rows", 1024), ("batch", 2), ("window", 512))


def phases(text):
    """The phases of a recipe with few steps, as a value of --set; empty where nothing is learned."""
    found = re.findall(r"^  - (\{objective.*\})$", text, re.M)
    assert len(found) == text.count("{objective"), "a phase is written in another way"
    for key, n in FEW:
        found = [re.sub(rf"\b{key}: \d+", f"{key}: {n}", p) for p in found]
    return [f"learn=[{', '.join(found)}]"] if found else []


def widen(to):
    """STORIES with an intermediate size that R4 takes: the channels that are added are 0, and so is their effect."""
    shutil.copytree(STORIES, to)
    path = os.path.join(to, "model.safetensors")
    tensors, meta = make_model.read_safetensors(path)
    for name, (dtype, shape, data) in tensors.items():
        size = {"F32": 4, "F16": 2, "BF16": 2}[dtype]
        if name.endswith(("gate_proj.weight", "up_proj.weight")):
            data += bytes((WIDE - INTERMEDIATE) * shape[1] * size)
            shape = [WIDE, shape[1]]
        elif name.endswith("down_proj.weight"):
            row = INTERMEDIATE * size
            data = b"".join(data[i:i + row] + bytes((WIDE - INTERMEDIATE) * size) for i in range(0, len(data), row))
            shape = [shape[0], WIDE]
        tensors[name] = (dtype, shape, data)
    make_model.write_safetensors(path, tensors, meta)
    with open(os.path.join(to, "config.json")) as f:
        config = json.load(f)
    config["intermediate_size"] = WIDE
    with open(os.path.join(to, "config.json"), "w") as f:
        json.dump(config, f)
    return to


class Recipes(Case):
    def setUp(self):
        super().setUp()
        self.model = widen(self.path("m"))
        self.text = self.path("text.txt")
        with open(TEXT, encoding="utf-8") as f:
            text = f.read()
        with open(self.text, "w", encoding="utf-8") as f:
            f.write(text * 3)  # a window of 2048

    def config(self, out):
        with tarfile.open(os.path.join(out, tars(out)[0])) as t:
            name = next(n for n in t.getnames() if n.endswith("/config.json"))
            return json.load(t.extractfile(name))

    def run_recipe(self, name):
        with open(os.path.join(FOLDER, name + ".yaml")) as f:
            text = f.read()
        out = self.path(name)
        words = ["--calib", self.text] if "calib:" in text else []
        if words and not WHOLE:
            words += settings("calib.windows=6", *phases(text))
        r = self.good("quantize", "--recipe", name, "--model", self.model, "--out", out, *words, ranks=2, limit=1000)
        self.good("verify", out, "--source", self.model, "--equivalence")
        self.good("inspect", out)
        got = self.perplexity(out, self.text, 256, "--tail", 1500)
        return text, out, r, got["ppl"]

    def check_errors(self, name, out):
        layers = self.good("inspect", out, "--errors", "--json").json()["layers"]
        told = [t for layer in layers for t in layer["tensors"]]
        self.assertEqual(len(told), 7 * LAYERS, name)
        printed = self.good("inspect", out, "--errors").out
        self.assertEqual("windows held out" in printed, any(t["measured"] for t in told), printed)
        for t in told:  # of held out windows no more than noise above
            self.assertLessEqual(t["after"], t["before"] * (1.1 if t["measured"] else 1), f"{name} {t}")

    def check_form(self, name, text, out, r):
        """What runtimes are told, and what the user is told of them."""
        config = self.config(out)["quantization_config"]
        loads = re.search(r"activations: \{bits: ([48]), symmetric: true, (group: weights, )?o_group: token", text)
        self.assertEqual(config["format"], "int-quantized" if "w8a8" in name else "pack-quantized", name)
        inputs = config["config_groups"]["group_0"]["input_activations"]
        self.assertEqual(inputs and str(inputs["num_bits"]), loads and loads[1], name)
        self.assertEqual("transform_config" in config, "r4" in text, name)
        below = re.search(r"activations: \{bits: (\d)", text)
        (self.assertNotRegex if loads or not below else self.assertRegex)(r.err, "load in no runtime")

    def test_all(self):
        names = sorted(os.path.basename(p)[:-5] for p in glob.glob(os.path.join(FOLDER, "*.yaml")))
        self.assertGreater(len(names), 10)
        source, ppl = self.perplexity(self.model, self.text, 256, "--tail", 1500)["ppl"], {}
        for name in names:
            text, out, r, ppl[name] = self.run_recipe(name)
            if "gpt" in text.split("weights:")[1].split(",")[0]:
                self.check_errors(name, out)
            self.check_form(name, text, out, r)
            most = next(v for k, v in MOST.items() if k in name)
            self.assertLess(abs(ppl[name] / source - 1), most, f"{name} {source} {ppl}")
        # the text is that of calibration: what is fitted to it is better there than what is not
        self.assertLess(ppl["best-w4a16"], ppl["rtn-w4a16"])
        self.assertLess(ppl["best-w4a8"], ppl["rtn-w4a16"])
        self.assertLess(ppl["best-w4a4kv4"], ppl["hadamard-w4a4kv4"])
        print(f"\nsource {source:.2f}; " + ", ".join(f"{n} {p:.2f}" for n, p in ppl.items()))


if __name__ == "__main__":
    main()
