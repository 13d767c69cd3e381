#!/usr/bin/env python3
"""One linear of an archive, with equal inputs, in transformers and by definition.

usage: linear_oracle.py FOLDER MODULE SEED ROWS TOOL BITS GROUP RULE

TOOL is tool_fake_quant, the quantizer of eval. Prints {"error": .., "unquantized": ..}: the largest difference of
an output between the module as transformers loads it and W Q(x), and between that and W x, over the largest output.
W is made here from the words and scales of the file, by their definition.
"""
import json
import subprocess
import sys

import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM


def weight(folder, name):
    """W in fp64 from the tensors of either form; 4 and 8 bits."""
    with open(f"{folder}/config.json") as f:
        bits = json.load(f)["quantization_config"]["config_groups"]["group_0"]["weights"]["num_bits"]
    with safe_open(f"{folder}/model-00001-of-00001.safetensors", "pt") as f:
        scale = f.get_tensor(f"{name}.weight_scale").double().numpy()
        if f"{name}.weight" in f.keys():
            codes = f.get_tensor(f"{name}.weight").double().numpy()
        else:
            words = f.get_tensor(f"{name}.weight_packed").numpy().view(np.uint32)
            codes = np.stack([words >> bits * k & (1 << bits) - 1 for k in range(32 // bits)], -1)
            codes = codes.reshape(len(words), -1).astype(np.float64) - (1 << bits - 1)
            codes = codes[:, :f.get_tensor(f"{name}.weight_shape")[1]]
    return codes * np.repeat(scale, codes.shape[1] // scale.shape[1], 1)


@torch.no_grad()
def main(folder, name, seed, rows, tool, bits, group, rule):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model(torch.tensor([[1, 2]]))  # compressed modules are opened by the first call of the model
    w = weight(folder, name)
    random = np.random.default_rng(int(seed))
    x = random.standard_normal((int(rows), w.shape[1])) * np.exp(random.standard_normal(w.shape[1]))
    x = x.astype(np.float32)
    if bits == "16":
        q = x
    else:
        made = subprocess.run([tool, bits, group, rule, str(w.shape[1])], input=x.tobytes(), capture_output=True, check=True)
        q = np.frombuffer(made.stdout, np.float32).reshape(x.shape)
    want, plain = q.astype(np.float64) @ w.T, x.astype(np.float64) @ w.T
    # [batch, tokens, n], as in the model: compressed-tensors takes a scale for each of the first two
    got = model.get_submodule(name)(torch.from_numpy(x)[None])[0].double().numpy()
    size = np.abs(want).max()
    print(json.dumps({"error": np.abs(got - want).max() / size, "unquantized": np.abs(want - plain).max() / size}))


if __name__ == "__main__":
    if len(sys.argv) != 9:
        sys.exit(__doc__)
    main(*sys.argv[1:])
