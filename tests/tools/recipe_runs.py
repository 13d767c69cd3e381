"""The built-in recipes on a small trained model, with few steps of learning: what test_recipes.py and recipe_bytes.py share."""
import glob
import json
import os
import re
import shutil

import make_model
from spin import STORIES, TESTS

FOLDER = os.path.join(os.environ.get("SPINSHARD_SOURCE", os.path.dirname(TESTS)), "jobs", "recipes")
LAYERS, INTERMEDIATE = 5, 172  # of STORIES
WIDE = 256  # of which there is a Hadamard matrix
FEW = (("steps", 3), ("rows", 1024), ("batch", 2), ("window", 512))


def names():
    """Of the built-in recipes."""
    return sorted(os.path.basename(p)[:-5] for p in glob.glob(os.path.join(FOLDER, "*.yaml")))


def recipe(name):
    """Its text."""
    with open(os.path.join(FOLDER, name + ".yaml"), encoding="utf-8") as f:
        return f.read()


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
