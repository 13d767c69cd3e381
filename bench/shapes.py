#!/usr/bin/env python3
"""A Hugging Face folder with the shape of a large model, few layers, and weights with the statistics of trained ones
(tests/tools/tool_model.c: channels and rows of log-normal norms, outlier channels, a massive token, gains that spread).

usage: shapes.py --make build/release/tests/tool_model SHAPE OUT [--layers N] [--vocab N] [--tokenizer DIR] [--every K]

SHAPE is one of SHAPES below. --tokenizer: whose tokenizer to put beside (default: that of tests/data/stories260K, whose 512
tokens are the first of any vocabulary). --every K: of embedding and head only each K-th row is written beyond the first 4096;
the others are holes of the file, so that a vocabulary of 128256 x 8192 takes little disk and little time.
"""
import argparse
import json
import os
import shutil
import subprocess

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SHAPES = {
    "llama2-70b": {"hidden": 8192, "intermediate": 28672, "heads": 64, "kv_heads": 8, "vocab": 32000},
    "llama3.1-8b": {"hidden": 4096, "intermediate": 14336, "heads": 32, "kv_heads": 8, "vocab": 128256},
    "llama3.3-70b": {"hidden": 8192, "intermediate": 28672, "heads": 64, "kv_heads": 8, "vocab": 128256},
    "mistral-large": {"hidden": 12288, "intermediate": 28672, "heads": 96, "kv_heads": 8, "vocab": 32768},
    # The proportions of 70B at a quarter: the same buffers count most, in seconds.
    "quarter-70b": {"hidden": 2048, "intermediate": 7168, "heads": 16, "kv_heads": 2, "vocab": 8000},
}
LLAMA31 = {"rope_theta": 500000.0, "max_position_embeddings": 131072,
           "rope_scaling": {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                            "original_max_position_embeddings": 8192, "rope_type": "llama3"}}


def make(maker, shape, out, layers=2, vocab=0, tokenizer=os.path.join(ROOT, "tests", "data", "stories260K"), every=1):
    keys = {**SHAPES[shape], "layers": layers, "every": every}
    if vocab:
        keys["vocab"] = vocab
    subprocess.run([maker, out, *(f"{k}={v}" for k, v in keys.items())], check=True)
    path = os.path.join(out, "config.json")
    with open(path) as f:
        config = json.load(f)
    if shape.startswith("llama3"):
        config.update(LLAMA31)
    with open(path, "w") as f:
        json.dump(config, f, indent=1)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(os.path.join(tokenizer, name), os.path.join(out, name))


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--make", required=True)
    p.add_argument("shape", choices=sorted(SHAPES))
    p.add_argument("out")
    p.add_argument("--layers", type=int, default=2)
    p.add_argument("--vocab", type=int, default=0)
    p.add_argument("--every", type=int, default=1)
    p.add_argument("--tokenizer", default=os.path.join(ROOT, "tests", "data", "stories260K"))
    a = p.parse_args()
    make(a.make, a.shape, a.out, a.layers, a.vocab, a.tokenizer, a.every)


if __name__ == "__main__":
    main()
