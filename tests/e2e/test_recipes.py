#!/usr/bin/env python3
"""Every recipe of jobs/recipes on a small trained model with nothing but files: quantize, verify against the source,
inspect, eval. Learning is cut to a few steps and calibration to few windows; SPINSHARD_RECIPES=whole runs them as they
stand (many minutes)."""
import json
import os
import re
import sys
import tarfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
from recipe_runs import LAYERS, names, phases, recipe, widen  # noqa: E402
from spin import TEXT, Case, main, settings, tars  # noqa: E402

WHOLE = os.environ.get("SPINSHARD_RECIPES") == "whole"
# of the perplexity, as a share: 5.65 of this model, 512 of one that knows nothing
MOST = {"w8a8": 0.02, "w4a16": 0.3, "w4a8": 0.3, "w4a4kv4": 2}

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
        text, out = recipe(name), self.path(name)
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
        self.assertGreater(len(names()), 10)
        source, ppl = self.perplexity(self.model, self.text, 256, "--tail", 1500)["ppl"], {}
        for name in names():
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
