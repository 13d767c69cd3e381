#!/usr/bin/env python3
"""What GPTQ ought to tell of each linear, computed from files alone: inputs of the linears of the quantized model as
transformers sees them in float32, weights of the source, codes and scales of the archive.

usage: gptq_oracle.py SOURCE ARCHIVE TEXT WINDOWS LENGTH [BITS CLIPS]     ARCHIVE: an unpacked archive, nothing rotated
BITS: inputs of linears have so many, a token's range with its zero; CLIPS: {"attn": [a, b], "mlp", "o", "down"} as JSON
prints {"tensor name": {"rows": .., "columns": .., "nearest_rows": .., "before": .., "after": .., "mean_diagonal": ..}}

before: |X (W - R)^T| / |X W^T| with R rounded to nearest on the archive's scales; after: with the archive's values;
mean_diagonal: of 2/N X^T X over the columns that are not 0.
"""
import json
import sys

import torch
from oracle import windows
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def unpack(packed, cols):
    """Eight codes a word, the lowest bits first, zero at 8."""
    words = packed.to(torch.int64) & 0xFFFFFFFF
    nibbles = torch.stack([(words >> (4 * i)) & 15 for i in range(8)], dim=-1)
    return (nibbles.reshape(packed.shape[0], -1)[:, :cols] - 8).double()


PLACES = {"q_proj": "attn", "k_proj": "attn", "v_proj": "attn", "gate_proj": "mlp", "up_proj": "mlp", "o_proj": "o",
          "down_proj": "down"}


def quantized(x, bits, ends):
    """Rows on 2^bits evenly spread numbers of which 0 is one, from a min(lo, 0) to b max(hi, 0) of each row."""
    lo, hi = ends[0] * x.amin(-1, True).clamp(max=0), ends[1] * x.amax(-1, True).clamp(min=0)
    step = (hi - lo) / (2 ** bits - 1)
    step[step == 0] = 1
    zero = torch.round(-lo / step)
    return (torch.clamp(torch.round(x / step) + zero, 0, 2 ** bits - 1) - zero) * step


def errors(weight, scale, codes, moment):
    """For inputs of which moment is X^T X: relative errors of outputs; rows that are rounded to nearest."""
    s = scale.repeat_interleave(weight.shape[1] // scale.shape[1], dim=1)
    nearest = torch.clamp(torch.round(weight / s), -8, 7).double()
    weight, s = weight.double(), s.double()

    def norm(d):
        return torch.sqrt(((d @ moment) * d).sum())
    return {"rows": weight.shape[0], "columns": weight.shape[1], "nearest_rows": int((nearest == codes).all(1).sum()),
            "before": float(norm(weight - nearest * s) / norm(weight)),
            "after": float(norm(weight - codes * s) / norm(weight))}


@torch.no_grad()
def main(source, archive, text, count, length, bits="16", clips="{}"):
    torch.set_num_threads(2)
    with open(text, encoding="utf-8", newline="") as f:
        batch = windows(source, f.read(), int(length), int(count))
    assert len(batch) == int(count), "the text is too short"
    model = AutoModelForCausalLM.from_pretrained(archive, dtype=torch.float32).eval()
    moments = {}

    def see(name):
        ends = json.loads(clips).get(PLACES[name.split(".")[-1]], [1, 1])

        def hook(module, args):
            x = args[0] if bits == "16" else quantized(args[0], int(bits), ends)
            rows = x.reshape(-1, x.shape[-1]).to(torch.bfloat16).double()
            moments[name] = moments.get(name, 0) + rows.T @ rows
            return (x,)
        return hook
    for name, module in model.named_modules():
        if name.endswith("_proj"):
            module.register_forward_pre_hook(see(name))
    for ids in batch:
        model(torch.tensor([ids]))
    tokens = sum(map(len, batch))
    old, new = load_file(f"{source}/model.safetensors"), load_file(f"{archive}/model-00001-of-00001.safetensors")
    found = {}
    for name, moment in moments.items():
        weight, scale = old[name + ".weight"].float(), new[name + ".weight_scale"].float()
        codes = unpack(new[name + ".weight_packed"], weight.shape[1])
        diagonal = moment.diagonal() * 2 / tokens
        found[name + ".weight"] = {**errors(weight, scale, codes, moment),
                                   "mean_diagonal": float(diagonal[diagonal > 0].mean())}
    print(json.dumps(found))


if __name__ == "__main__":
    if len(sys.argv) not in (6, 8):
        sys.exit(__doc__)
    main(*sys.argv[1:])
