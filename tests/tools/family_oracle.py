#!/usr/bin/env python3
"""Tiny random models made by the classes of transformers, and what these compute in double.

usage: family_oracle.py WORK

Makes WORK/NAME for each model of MODELS: config.json, weights, ids.bin (int32) and logits.bin, the logits of these ids in
fp64, and prints [{"name": .., "class": .., "ids": how many}, ..].

The classes compute norms and positions in fp32 whatever the model's type. Here they are made to do it in double: norms by
their own formula, frequencies by transformers' own functions with double in the place of its float.
"""
import json
import os
import shutil
import sys

import torch
import transformers
from transformers import modeling_rope_utils
from transformers.utils import logging

DATA = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "data", "stories260K")
BASE = {"vocab_size": 512, "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}

# name: (class, type of the weights, config). No size is a power of two where it can be helped.
MODELS = {
    "qwen2": ("Qwen2", torch.float32, {
        "hidden_size": 72, "intermediate_size": 120, "num_hidden_layers": 3, "num_attention_heads": 6,
        "num_key_value_heads": 2, "tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 21,
        "max_window_layers": 1, "max_position_embeddings": 256}),
    "qwen2-yarn": ("Qwen2", torch.bfloat16, {
        "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4, "rope_scaling": YARN, "max_position_embeddings": 256, "rope_theta": 1e6}),
    "qwen3": ("Qwen3", torch.bfloat16, {
        "hidden_size": 40, "intermediate_size": 72, "num_hidden_layers": 3, "num_attention_heads": 6,
        "num_key_value_heads": 3, "head_dim": 20, "max_position_embeddings": 256, "rope_theta": 1e6}),
    "qwen3-biases": ("Qwen3", torch.float32, {
        "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 24, "attention_bias": True, "tie_word_embeddings": True,
        "max_position_embeddings": 256}),
    "mistral-nemo": ("Mistral", torch.bfloat16, {
        "hidden_size": 80, "intermediate_size": 112, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32, "sliding_window": None, "max_position_embeddings": 256,
        "rope_theta": 1e6}),
    "smollm3": ("SmolLM3", torch.float32, {
        "hidden_size": 48, "intermediate_size": 104, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "no_rope_layer_interval": 2, "max_position_embeddings": 256}),
    "granite": ("Granite", torch.bfloat16, {
        "hidden_size": 40, "intermediate_size": 88, "num_hidden_layers": 3, "num_attention_heads": 5,
        "num_key_value_heads": 1, "embedding_multiplier": 12.0, "attention_multiplier": 0.4, "residual_multiplier": 0.22,
        "logits_scaling": 2.0, "tie_word_embeddings": True, "max_position_embeddings": 256}),
    "llama-3.1": ("Llama", torch.bfloat16, {
        "hidden_size": 48, "intermediate_size": 88, "num_hidden_layers": 2, "num_attention_heads": 6,
        "num_key_value_heads": 2, "rope_scaling": LLAMA3, "rope_theta": 500000.0, "max_position_embeddings": 512}),
    "llama-dynamic": ("Llama", torch.float16, {
        "hidden_size": 40, "intermediate_size": 72, "num_hidden_layers": 2, "num_attention_heads": 5,
        "num_key_value_heads": 1, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0},
        "max_position_embeddings": 256}),
}
N_IDS = 100  # more than the windows and the original contexts above


def fill(model):
    """Numbers as tests/tools/make_model.py has them: wide embeddings, gains around one, biases that count."""
    for name, p in model.named_parameters():
        if "norm" in name:
            p.data = torch.exp(0.3 * torch.randn_like(p))
        else:
            spread = 0.2 if name.endswith("bias") else 0.25 if "embed" in name or "lm_head" in name else p.shape[1] ** -0.5
            p.data = spread * torch.randn_like(p)


def double_norm(module):
    def forward(x):
        return module.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon))
    return forward


def double_positions(config):
    kind = (getattr(config, "rope_scaling", None) or {}).get("rope_type", "default")
    single = torch.float32
    torch.float = torch.float32 = torch.float64
    try:
        inverse, gain = modeling_rope_utils.ROPE_INIT_FUNCTIONS[kind](config, "cpu") if kind != "default" else (
            1 / config.rope_theta ** (torch.arange(0, head_dim(config), 2).double() / head_dim(config)), 1.0)
    finally:
        torch.float = torch.float32 = single
    assert inverse.dtype == torch.float64

    def forward(x, position_ids):
        angle = position_ids[..., None].double() * inverse
        angle = torch.cat([angle, angle], -1)
        return angle.cos() * gain, angle.sin() * gain
    return forward


def head_dim(config):
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


@torch.no_grad()
def make(name, folder):
    kind, dtype, keys = MODELS[name]
    torch.manual_seed(len(name))
    config = getattr(transformers, kind + "Config")(**{**BASE, **keys})
    config._attn_implementation = "sdpa"  # the other one takes softmax in fp32
    model = getattr(transformers, kind + "ForCausalLM")(config)
    fill(model)
    model = model.to(dtype)
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(os.path.join(DATA, file), os.path.join(folder, file))
    model = model.double().eval()
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.forward = double_norm(module)
    model.model.rotary_emb.forward = double_positions(config)
    ids = torch.randint(0, config.vocab_size, (1, N_IDS))
    logits = model(ids).logits[0]
    assert logits.dtype == torch.float64
    ids.to(torch.int32).numpy().tofile(os.path.join(folder, "ids.bin"))
    logits.numpy().tofile(os.path.join(folder, "logits.bin"))


def main(work):
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for name in MODELS:
        make(name, os.path.join(work, name))
    print(json.dumps([{"name": name, "class": kind + "ForCausalLM", "ids": N_IDS} for name, (kind, _, _) in MODELS.items()]))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
