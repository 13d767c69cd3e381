#!/usr/bin/env python3
"""Every value of every recipe key, end to end on the small trained model: quantize, verify against the source, eval.
Keys that meet in the same code are tried in pairs, each pair of values together at least once. The list of keys and
words is that of `spinshard quantize --help`, so a new one without a value here fails."""
import os
import random
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import recipe_space as space  # noqa: E402
from spin import STORIES, TEXT, Case, main, settings, spin  # noqa: E402

SIZES = {"hidden": 64, "intermediate": 172, "heads": 8, "kv_heads": 4, "head_dim": 8}  # of STORIES
# Keys whose values are tried in pairs.
TOGETHER = [
    ("rotate.r1", "rotate.r2", "rotate.start", "rotate.start_r2", "scale.pairs", "scale.start", "kv.bits", "archive.dtype"),
    ("weights.method", "weights.bits", "weights.group", "weights.symmetric", "weights.scale", "archive.dtype", "archive.form"),
]
WORKERS = 2


def known():
    """{key: words} and the keys of a phase, as the program tells them."""
    text = spin("quantize", "--help").out
    keys, phases = text[text.index("Recipe keys"):].split("Keys of a phase")

    def table(part):
        return {m[1]: m[2] for m in re.finditer(r"^    ([\w.]+)=\S*\s.*\(([^()]*)\)$", part, re.M)}
    return table(keys), table(phases)


ELSEWHERE = {"gguf", "gptq"}  # not read back by eval, or wants sizes in eights: test_gguf.py, test_forms.py


class EveryValue(Case):
    def setUp(self):
        super().setUp()
        self.file = self.path("rotations.safetensors")
        self.good("quantize", "--model", STORIES, "--out", self.path("first"),
                  *settings("rotate.start=orthogonal", "rotate.r2=head"))
        shutil.copyfile(self.path("first", "rotations.safetensors"), self.file)

    def end_to_end(self, recipe, name):
        """One recipe; what is wrong with it, as a text."""
        recipe = {**recipe, "rotate.start": recipe["rotate.start"].replace(space.FILE, self.file)}
        out, words = self.path(name), space.words(recipe)
        commands = [["quantize", "--model", STORIES, "--out", out, "--calib", TEXT, *words],
                    ["verify", out, "--source", STORIES],
                    ["eval", "--model", out, "--text", TEXT, "--window", 64, "--limit", 4, "--json"]]
        for command in commands:
            r = spin(*command)
            if r.rc or r.errors():
                return f"{name}: {' '.join(words)}\n{r}"
        shutil.rmtree(out)
        return ""

    def run_all(self, recipes):
        with ThreadPoolExecutor(WORKERS) as pool:
            wrong = [w for w in pool.map(self.end_to_end, recipes, (f"r{i}" for i in range(len(recipes)))) if w]
        print(f"{len(recipes)} recipes")
        self.assertEqual(wrong, [], "\n".join(wrong))

    def test_the_list_is_that_of_the_program(self):
        keys, phases = known()
        self.assertEqual(sorted(keys), sorted({*space.VALUES, "learn"}))
        self.assertEqual(sorted(phases), sorted(space.PHASE_VALUES))
        for table, values in ((keys, space.VALUES), (phases, space.PHASE_VALUES)):
            for key, want in table.items():
                words = re.match(r"(?:a list of )?([\w|-]*\|[\w|-]+)", want)  # none where another kind of value comes first
                for word in words[1].split("|") if words else []:
                    tried = {w for v in values[key] for w in (v if isinstance(v, list) else [v])}
                    if word not in ELSEWHERE:
                        self.assertIn(word, tried, f"{key}: {want}")

    def test_each_value(self):
        """One key at a time, beside what it needs to count."""
        recipes, base = [], space.default()
        rounding = {"weights.method": "gptaq"}
        inputs = {"activations.bits": 8, "kv.bits": 4}
        for key, values in space.VALUES.items():
            for value in values:
                r = {**base, key: value}
                if key.startswith(("weights.", "numerics.gptq")) and key not in ("weights.method", "weights.bits"):
                    r = {**base, **rounding, key: value}
                if key.startswith(("activations.", "kv.", "calib.", "rotate.")):
                    r = {**base, **rounding, "weights.stream": "quantized", **inputs, key: value}
                if key in ("activations.eight", "activations.average"):
                    r["activations.bits"] = 4
                if key.endswith(".clip"):  # GPTAQ says that streams with ranges of a hundredth are too far apart
                    r["weights.method"] = "gptq"
                if key == "rotate.r3":
                    r["rotate.online"] = ["r3"]
                if value in ("runtime", "fp8"):
                    r["kv.bits"] = 4 if value == "runtime" else 8
                if key == "rotate.r4_block":
                    r["rotate.online"] = ["r4"]
                if "r4" in r["rotate.online"] and r["rotate.r4_block"] == "auto":
                    r["rotate.r4_block"] = 4
                if key == "scale.pairs" and value:
                    r = {**r, **inputs, "scale.start": "closed"}
                if key in ("scale.start", "scale.alpha") and value != "ones":
                    r = {**r, **inputs, "scale.pairs": ["norm"], "rotate.r1": False, "rotate.r2": "none",
                         "scale.start": "smooth", key: value}
                if value == "int-quantized":
                    r = {**r, "activations.bits": 8, "activations.symmetric": True, "activations.o_group": "token",
                         "activations.scale": "compressed-tensors"}
                if key == "numerics.slice_tokens":
                    r = {**r, **inputs, "learn": [space.phase(objective="ce")]}
                if key.startswith("numerics.grid") or key == "numerics.threads":
                    r = {**r, **inputs, "learn": [space.phase()]}
                self.assertEqual(space.refusals(r, SIZES), [], r)
                if r not in recipes:
                    recipes.append(r)
        self.run_all(recipes)

    def test_each_value_of_a_phase(self):
        recipes = []
        for objective in space.PHASE_VALUES["objective"]:
            rng = random.Random(objective)
            values = {k: rng.sample(v, len(v)) for k, v in space.PHASE_VALUES.items()}
            for i in range(max(map(len, values.values()))):  # a row of a Latin square: every value once
                p = {k: v[i % len(v)] for k, v in values.items()}
                recipes.append({**space.default(), "activations.bits": 4, "kv.bits": 4,
                                "learn": [{**p, "objective": objective}]})
        self.run_all(recipes)

    def test_pairs(self):
        recipes = []
        for i, keys in enumerate(TOGETHER):
            recipes += space.pairwise(keys, lambda r: not space.refusals(r, SIZES), random.Random(i))
        self.run_all(recipes)


if __name__ == "__main__":
    main()
