"""Folders of large published models without their weights: config.json with the hyperparameters that their model cards
state, and an index that spreads the tensors over shards. plan needs no more."""
import json
import os

import make_model

# hidden, intermediate, layers, heads, KV heads, vocabulary, shards
MODELS = {"llama1-7b": (4096, 11008, 32, 32, 32, 32000, 2),
          "llama2-70b": (8192, 28672, 80, 64, 8, 32000, 15),
          "llama3.1-8b": (4096, 14336, 32, 32, 8, 128256, 4),
          "llama3.2-1b": (2048, 8192, 16, 32, 8, 128256, 1)}
TIED = {"llama3.2-1b"}


# config.json as published, of families that are LLaMA with more; keys that no plan depends on are left out. The last number
# is that of the parameters, as the model cards round it and the sizes of the shards state it.
OTHERS = {
    "qwen2.5-72b": ({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "hidden_size": 8192,
        "intermediate_size": 29568, "max_position_embeddings": 131072, "max_window_layers": 80, "num_attention_heads": 64,
        "num_hidden_layers": 80, "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0,
        "sliding_window": 131072, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_sliding_window": False,
        "vocab_size": 152064}, 72706203648),
    "qwen3-32b": ({
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 5120, "intermediate_size": 25600, "max_position_embeddings": 40960, "max_window_layers": 64,
        "model_type": "qwen3", "num_attention_heads": 64, "num_hidden_layers": 64, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_sliding_window": False, "vocab_size": 151936},
        32762123264),
    "mistral-large-2411": ({
        "architectures": ["MistralForCausalLM"], "head_dim": 128, "hidden_act": "silu", "hidden_size": 12288,
        "intermediate_size": 28672, "max_position_embeddings": 131072, "model_type": "mistral", "num_attention_heads": 96,
        "num_hidden_layers": 88, "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0,
        "sliding_window": None, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "vocab_size": 32768},
        122610069504),
}


def write_config(folder, name):
    """config.json of one of OTHERS and nothing else; gives back the folder."""
    os.makedirs(folder)
    with open(os.path.join(folder, "config.json"), "w", encoding="utf8") as f:
        json.dump(OTHERS[name][0], f)
    return folder


def config(name):
    h, f, layers, heads, kv, vocab, _ = MODELS[name]
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": h,
            "intermediate_size": f, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv,
            "head_dim": h // heads, "vocab_size": vocab, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": name in TIED,
            "torch_dtype": "float16", "bos_token_id": 1, "eos_token_id": 2}


def write(folder, name, **changes):
    """Write the folder and give it back; changes: keys of config.json."""
    os.makedirs(folder)
    c = {**config(name), **changes}
    names, shards = list(make_model.shapes(c)), MODELS[name][-1]
    index = {n: f"model-{i * shards // len(names) + 1:05}-of-{shards:05}.safetensors" for i, n in enumerate(names)}
    for file, value in (("config.json", c), ("model.safetensors.index.json", {"metadata": {}, "weight_map": index})):
        with open(os.path.join(folder, file), "w", encoding="utf8") as f:
            json.dump(value, f)
    return folder
