#!/usr/bin/env python3
"""The foreign reader: a Hugging Face folder loaded by transformers in float32, and its perplexity.

usage: oracle.py FOLDER TEXT WINDOW [LIMIT]     prints {"class": .., "nll": .., "ppl": .., "windows": .., "tokens": ..}
       oracle.py --versions                     prints {"compressed-tensors": "0.17.1", ..}

Runs in a Python that has torch, transformers, compressed-tensors and tokenizers. The text is tokenized
once as a whole; each window of WINDOW tokens begins with what the tokenizer's post-processor adds.
"""
import json
import sys
from importlib.metadata import version

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM


def windows(folder, text, size, limit):
    tok = Tokenizer.from_file(f"{folder}/tokenizer.json")
    ids = tok.encode(text, add_special_tokens=False).ids
    plain = tok.encode("a", add_special_tokens=False).ids
    full = tok.encode("a", add_special_tokens=True).ids
    prefix = full[:len(full) - len(plain)]
    step = size - len(prefix)
    n = len(ids) // step
    return [prefix + ids[i * step:(i + 1) * step] for i in range(min(n, limit or n))]


def versions():
    print(json.dumps({name: version(name) for name in ("compressed-tensors", "transformers", "torch")}))


def loss_of(model, batch):
    nll, n = 0.0, 0
    for ids in batch:
        x = torch.tensor([ids])
        logits = model(x).logits[0, :-1].double()
        nll += torch.nn.functional.cross_entropy(logits, x[0, 1:], reduction="sum").item()
        n += len(ids) - 1
    mean = nll / n
    return {"class": type(model).__name__, "nll": mean, "ppl": float(torch.tensor(mean).double().exp()), "windows": len(batch), "tokens": n}


@torch.no_grad()
def main(folder, path=None, size=None, limit=0, load=AutoModelForCausalLM.from_pretrained):
    """`load`: what makes a model of the folder."""
    if folder == "--versions":
        return versions()
    torch.set_num_threads(2)
    with open(path, encoding="utf-8", newline="") as f:
        batch = windows(folder, f.read(), int(size), int(limit))
    print(json.dumps(loss_of(load(folder, dtype=torch.float32).eval(), batch)))


if __name__ == "__main__":
    if len(sys.argv) < 4 and sys.argv[1:] != ["--versions"]:
        sys.exit(__doc__)
    main(*sys.argv[1:])
