#!/usr/bin/env python3
"""Make tiny LLaMA checkpoints from a seed, and damage them, with the standard library alone.

usage: make_model.py OUT [--seed N] [--hidden 128 ...]   (see --help)

Not a trained model: the embedding is wide enough that the logits spread over several units, so that
perplexity answers to errors in any layer. The tokenizer is the one of tests/data/stories260K.
Other tests import this file: make(), make_loud_down(), plain_r1(), read_safetensors(), write_safetensors().
"""
import argparse
import array
import json
import math
import os
import random
import re
import shutil
import struct

DATA = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "data", "stories260K")


def half_bytes(values, dtype):
    """Little-endian bytes of floats in a safetensors type."""
    if dtype == "F32":
        return array.array("f", values).tobytes()
    if dtype == "F16":
        return struct.pack(f"<{len(values)}e", *values)
    if dtype == "BF16":  # round to nearest even on the upper half
        raw = array.array("I", array.array("f", values).tobytes())
        return array.array("H", [((u + 0x7FFF + ((u >> 16) & 1)) >> 16) & 0xFFFF for u in raw]).tobytes()
    raise ValueError(dtype)


def write_safetensors(path, tensors, metadata=None):
    """tensors: {name: (dtype, shape, bytes)} in the order of the file."""
    header, end = {"__metadata__": metadata or {"format": "pt"}}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for _, _, data in tensors.values():
            f.write(data)


def read_safetensors(path):
    with open(path, "rb") as f:
        data = f.read()
    n = struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8:8 + n])
    meta = header.pop("__metadata__", None)
    body = data[8 + n:]
    return {k: (v["dtype"], v["shape"], body[slice(*v["data_offsets"])]) for k, v in header.items()}, meta


def shapes(c):
    """Names and shapes of a LLaMA checkpoint of config c, in the order of the forward pass."""
    h, f, d = c["hidden_size"], c["intermediate_size"], c["head_dim"]
    q, kv = c["num_attention_heads"] * d, c["num_key_value_heads"] * d
    out = {"model.embed_tokens.weight": [c["vocab_size"], h]}
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        linears = {"self_attn.q_proj": (q, h, "attention_bias"), "self_attn.k_proj": (kv, h, "attention_bias"),
                   "self_attn.v_proj": (kv, h, "attention_bias"), "self_attn.o_proj": (h, q, "attention_bias"),
                   "mlp.gate_proj": (f, h, "mlp_bias"), "mlp.up_proj": (f, h, "mlp_bias"),
                   "mlp.down_proj": (h, f, "mlp_bias")}
        out[p + "input_layernorm.weight"] = [h]
        out[p + "post_attention_layernorm.weight"] = [h]
        for name, (rows, cols, bias) in linears.items():
            out[p + name + ".weight"] = [rows, cols]
            if c[bias]:
                out[p + name + ".bias"] = [rows]
    out["model.norm.weight"] = [h]
    if not c["tie_word_embeddings"]:
        out["lm_head.weight"] = [c["vocab_size"], h]
    return out


def values(rng, name, shape, loud=1):
    """Numbers of one tensor. loud: in the residual stream every 16th channel is that many times larger, as in large models,
    and gains take it back for what reads the stream, so that quiet channels matter as much and drown at 4 bits. Below 1 it
    is the columns of the weights, times the gains, that are loud."""
    n = math.prod(shape)
    if loud != 1 and ("embed" in name or "norm" in name):
        v, factor = values(rng, name, shape), 1 / loud if "norm" in name else loud
        return [x * factor if i % shape[-1] % 16 == 3 else x for i, x in enumerate(v)]
    if "norm" in name:
        return [math.exp(rng.gauss(0, 0.3)) for _ in range(n)]
    if name.endswith("bias"):
        return [rng.gauss(0, 0.2) for _ in range(n)]
    spread = 0.25 if "embed" in name or "lm_head" in name else 1 / math.sqrt(shape[1])
    return [rng.gauss(0, spread) for _ in range(n)]


def config_of(a):
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "hidden_size": a.hidden, "intermediate_size": a.intermediate, "num_hidden_layers": a.layers,
            "num_attention_heads": a.heads, "num_key_value_heads": a.kv_heads,
            "head_dim": a.head_dim or a.hidden // a.heads, "vocab_size": 512,
            "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": None,
            "attention_bias": a.biases, "mlp_bias": a.biases, "tie_word_embeddings": not a.untied,
            "torch_dtype": names[a.dtype], "initializer_range": 0.02, "bos_token_id": 1, "eos_token_id": 2}


def parser():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("out")
    for name, default in (("seed", 1), ("hidden", 128), ("intermediate", 256), ("layers", 3), ("heads", 8),
                          ("kv-heads", 4), ("head-dim", 0), ("shards", 1)):
        p.add_argument("--" + name, type=int, default=default)
    p.add_argument("--loud", type=float, default=1)
    p.add_argument("--dtype", choices=["F32", "F16", "BF16"], default="F32")
    p.add_argument("--biases", action="store_true")
    p.add_argument("--untied", action="store_true")
    return p


def write_shards(out, tensors, n):
    if n == 1:
        write_safetensors(os.path.join(out, "model.safetensors"), tensors)
        return
    names, weight_map = list(tensors), {}
    for k in range(n):
        part = names[k * len(names) // n:(k + 1) * len(names) // n]
        file = f"model-{k + 1:05}-of-{n:05}.safetensors"
        write_safetensors(os.path.join(out, file), {t: tensors[t] for t in part})
        weight_map.update({t: file for t in part})
    total = sum(len(data) for _, _, data in tensors.values())
    with open(os.path.join(out, "model.safetensors.index.json"), "w") as f:
        json.dump({"metadata": {"total_size": total}, "weight_map": weight_map}, f, indent=2)


def make(out, *flags):
    """Write a checkpoint into the folder out; flags as on the command line. Gives back out."""
    a = parser().parse_args([out, *map(str, flags)])
    os.makedirs(out, exist_ok=True)
    config = config_of(a)
    tensors = {}
    for name, shape in shapes(config).items():
        rng = random.Random(f"{a.seed} {name}")
        tensors[name] = (a.dtype, shape, half_bytes(values(rng, name, shape, a.loud), a.dtype))
    write_shards(out, tensors, a.shards)
    with open(os.path.join(out, "config.json"), "w") as f:
        json.dump(config, f, indent=2)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(os.path.join(DATA, name), os.path.join(out, name))
    return out


def make_loud_down(out, factor=32):
    """The trained model of tests/data with loud channels at the input of down: every 16th row of up is that power of two
    larger and the column of down as much smaller, so in floating point it is the very same function, while at 4 bits the
    quiet channels drown unless scales of up and down take it back. Gives back out."""
    os.makedirs(out, exist_ok=True)
    tensors, meta = read_safetensors(os.path.join(DATA, "model.safetensors"))
    for key, (dtype, shape, data) in tensors.items():
        if re.search(r"(up|down)_proj\.weight$", key):
            assert dtype == "F32"
            v, up = array.array("f", data), "up_proj" in key
            for i in range(len(v)):
                if (i // shape[1] if up else i % shape[1]) % 16 == 3:
                    v[i] *= factor if up else 1 / factor
            tensors[key] = (dtype, shape, v.tobytes())
    write_safetensors(os.path.join(out, "model.safetensors"), tensors, meta)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(os.path.join(DATA, name), os.path.join(out, name))
    return out


def plain_r1(source, out):
    """A rotation file with the identity as R1: the worst start of a model with loud channels, from which learning has
    far to go, whatever its rounding. Gives back out."""
    tensors, meta = read_safetensors(source)
    dtype, shape, _ = tensors["R1"]
    assert dtype == "F64"
    n = shape[0]
    tensors["R1"] = (dtype, shape, array.array("d", (float(i // n == i % n) for i in range(n * n))).tobytes())
    write_safetensors(out, tensors, meta)
    return out


if __name__ == "__main__":
    make(*__import__("sys").argv[1:])
