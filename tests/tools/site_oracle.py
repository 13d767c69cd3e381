#!/usr/bin/env python3
"""Statistics of the input of a layer's down_proj, captured by transformers in float32, by numpy: kurtosis, largest over rms,
log QSUR / d; and of the same rows turned by another program, whose rows it also holds against the originals.

usage: site_oracle.py MODEL TEXT WINDOWS ROWS.f32            writes the rows and prints {"width", "rows"}
       site_oracle.py --judge ROWS.f32 TURNED.f32 WIDTH      prints {"before": {..}, "after": {..}}
"""
import json
import sys

import numpy


def capture(folder, path, count, out):
    import torch
    from oracle import windows
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = []
    layer = model.model.layers[len(model.model.layers) // 2]
    layer.mlp.down_proj.register_forward_pre_hook(lambda _, args: rows.append(args[0][0].detach().numpy()))
    with open(path, encoding="utf-8", newline="") as f, torch.no_grad():
        for ids in windows(folder, f.read(), 256, int(count)):
            model(torch.tensor([ids]))
    x = numpy.concatenate(rows).astype("<f4")
    x.tofile(out)
    print(json.dumps({"width": x.shape[1], "rows": x.shape[0]}))


def chi2_point(d, share):
    """The point below which a share of all chi^2 numbers of d degrees lie, from 2^20 draws, so that it shares no method with the
    program's; log QSUR / d takes half of its relative error."""
    draws = numpy.random.default_rng(1).chisquare(d, 1 << 20)
    return float(numpy.quantile(draws, share))


def stats(x):
    from math import lgamma, log, pi
    x = x.astype(numpy.float64)
    d = x.shape[1]
    centred = x - x.mean()
    sign, log_det = numpy.linalg.slogdet(numpy.cov(x, rowvar=False))
    most = numpy.abs(x).max()
    volume = d / 2 * log(pi * chi2_point(d, 0.99)) - lgamma(d / 2 + 1) + log_det / 2
    return {"kurtosis": float((centred ** 4).mean() / (centred ** 2).mean() ** 2), "max_over_rms": float(most / (x ** 2).mean() ** 0.5),
            "log_qsur": float(volume / d - log(2 * most)) if sign > 0 else None}


def judge(before, after, width):
    x, y = (numpy.fromfile(p, "<f4").reshape(-1, int(width)) for p in (before, after))
    lengths = numpy.abs(numpy.linalg.norm(y, axis=1) / numpy.linalg.norm(x, axis=1) - 1).max()
    print(json.dumps({"before": stats(x), "after": stats(y), "lengths": float(lengths)}))


def main(*words):
    if len(words) != 4:
        sys.exit(__doc__)
    if words[0] == "--judge":
        judge(*words[1:])
    else:
        capture(*words)


if __name__ == "__main__":
    main(*sys.argv[1:])
