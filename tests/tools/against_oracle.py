#!/usr/bin/env python3
"""The distance of one Hugging Face folder's predictions to another's, by transformers in float32: what `spinshard eval
--model FOLDER --against SOURCE` says.

usage: against_oracle.py FOLDER SOURCE TEXT WINDOW LIMIT     prints one JSON object, keys as eval has them
"""
import json
import sys

import numpy
import torch
from oracle import windows
from transformers import AutoModelForCausalLM


@torch.no_grad()
def logits(folder, batch):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.eval()
    return [torch.log_softmax(model(torch.tensor([ids])).logits[0, :-1].double(), -1) for ids in batch]


def mean_and_error(name, by_window):
    means = [numpy.mean(w) for w in by_window]
    return {name: float(numpy.mean(means)), name + "_stderr": float(numpy.std(means, ddof=1) / len(means) ** 0.5)}


def main(folder, source, path, size, limit):
    torch.set_num_threads(2)
    with open(path, encoding="utf-8", newline="") as f:
        batch = windows(source, f.read(), int(size), int(limit))
    p, q = logits(source, batch), logits(folder, batch)
    kl = [torch.nn.functional.kl_div(b, a, log_target=True, reduction="none").sum(-1).numpy() for a, b in zip(p, q)]
    same = [(a.argmax(-1) == b.argmax(-1)).double().numpy() for a, b in zip(p, q)]
    nll = [[-x[range(len(ids) - 1), ids[1:]].numpy() for x, ids in zip(of, batch)] for of in (p, q)]
    flat = numpy.concatenate(kl)
    print(json.dumps({**mean_and_error("kl_mean", kl), **mean_and_error("same_top", same), **mean_and_error("nll", nll[0]),
                      **mean_and_error("nll_more", [b - a for a, b in zip(*nll)]), "kl_max": float(flat.max()),
                      "kl_99": float(numpy.quantile(flat, 0.99)), "model_nll": float(numpy.mean(nll[1]))}))


if __name__ == "__main__":
    if len(sys.argv) != 6:
        sys.exit(__doc__)
    main(*sys.argv[1:])
