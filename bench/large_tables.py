#!/usr/bin/env python3
"""An embedding and a head of 128256 x 8192, fused and written, against an independent computation on sampled rows.

usage: large_tables.py --program build/release/spinshard --make build/release/tests/tool_model --work DIR
                       [--vocab 128256] [--hidden 8192] [--mem 3G] [--samples 64]
Needs numpy; 11 GB of disk, and some minutes. Rows that the source has as holes must come out as zeros. The rows are x R1 in
fp64 by numpy, R1 from rotations.safetensors, where each entry may be off by one rounding to the type of the archive.
"""
import argparse
import json
import os
import shutil
import struct
import subprocess

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def header(path, at=0):
    with open(path, "rb") as f:
        f.seek(at)
        n = struct.unpack("<Q", f.read(8))[0]
        return json.loads(f.read(n)), at + 8 + n


def rows(path, tensor, start, which):
    """Rows of a matrix in a file, as fp64; those alone are read."""
    kind, width = TYPES[tensor["dtype"]], tensor["shape"][1]
    item = np.dtype(kind).itemsize
    out = np.empty((len(which), width))
    with open(path, "rb") as f:
        for i, r in enumerate(which):
            f.seek(start + tensor["data_offsets"][0] + r * width * item)
            x = np.frombuffer(f.read(width * item), kind)
            out[i] = (x.astype(np.uint32) << 16).view(np.float32) if tensor["dtype"] == "BF16" else x
    return out


def shards(out):
    """Tensors of the archive: name -> (tar, header entry, first byte of the data)."""
    with open(os.path.join(out, "manifest.json")) as f:
        manifest = json.load(f)
    found = {}
    for e in manifest["entries"]:
        if e["name"].endswith(".safetensors"):
            tar = os.path.join(out, manifest["tars"][e["tar"]]["file"] if isinstance(e["tar"], int) else e["tar"])
            tensors, start = header(tar, e["offset"])
            found.update({k: (tar, v, start) for k, v in tensors.items() if k != "__metadata__"})
    return found


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("program", "make", "work"):
        p.add_argument("--" + name, required=True)
    p.add_argument("--vocab", type=int, default=128256)
    p.add_argument("--hidden", type=int, default=8192)
    p.add_argument("--mem", default="3G")
    p.add_argument("--samples", type=int, default=64)
    a = p.parse_args()
    model, out = os.path.join(a.work, "tables"), os.path.join(a.work, "tables-out")
    every = 512
    if not os.path.isfile(os.path.join(model, "tokenizer.json")):
        subprocess.run([a.make, model, f"hidden={a.hidden}", "intermediate=1024", "layers=1", f"heads={a.hidden // 128}",
                        "kv_heads=8", f"vocab={a.vocab}", f"every={every}"], check=True)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(os.path.join(ROOT, "tests", "data", "stories260K", name), os.path.join(model, name))
    if not os.path.isfile(os.path.join(out, "manifest.json")):
        subprocess.run([a.program, "quantize", "--model", model, "--out", out, "--recipe", "hadamard-w4a16", "--mem", a.mem,
                        "--set", "weights.scale=max"], check=True)
    source, source_start = header(os.path.join(model, "model.safetensors"))
    weights = os.path.join(model, "model.safetensors")
    rotations = os.path.join(out, "rotations.safetensors")
    r, r_start = header(rotations)
    R1 = rows(rotations, r["R1"], r_start, range(a.hidden))
    norm = source["model.norm.weight"]
    gain = rows(weights, {**norm, "shape": [1, a.hidden]}, source_start, [0])[0]
    got, worst, checked = shards(out), 0.0, 0
    rng = np.random.default_rng(0)
    written = np.concatenate([np.arange(4096), np.arange(4096 // every + 1, (a.vocab - 1) // every + 1) * every])
    which = np.unique(np.concatenate([[0, a.vocab - 1, (a.vocab - 1) // every * every], rng.choice(written, a.samples)]))
    for name, by in (("model.embed_tokens.weight", np.ones(a.hidden)), ("lm_head.weight", gain)):
        want = rows(weights, source[name], source_start, which) * by @ R1
        tar, tensor, start = got[name]
        have = rows(tar, tensor, start, which)
        step = {"BF16": 2.0**-8, "F16": 2.0**-11, "F32": 2.0**-24}[tensor["dtype"]]
        # One rounding to the stored type, and what fp64 sums of hidden terms may lose.
        bound = step * np.abs(want) + a.hidden * 2.0**-52 * np.abs(want).max(axis=1, keepdims=True) + 2.0**-126
        off = np.abs(have - want)
        assert (off <= 1.01 * bound).all(), (name, (off / bound).max())
        worst, checked = max(worst, float((off / bound).max())), checked + have.size
        print("%s %s: %d rows equal to numpy's; largest distance %.2f of a rounding" % (name, tensor["dtype"], len(which), worst))
    print("%d numbers checked" % checked)


if __name__ == "__main__":
    main()
