#!/usr/bin/env python3
"""Token ids of the `tokenizers` package and tensor names of `transformers`, for tests/data/goldens.

usage: golden_tokens.py SMOLLM2_TOKENIZER_JSON     writes goldens/tokenizers/*.json, goldens/tokens.json, goldens/names.json

The byte-level tokenizers are SmolLM2's (Apache-2.0) with its first 1200 merges, once with its own pre-tokenizer
(digits apart, the pattern of GPT-2) and once with the pattern that Llama 3 publishes. The other is the one of
tests/data/stories260K (characters, byte fallback).
"""
import json
import os
import random
import sys

import tokenizers

DATA = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "data")
GOLDENS = os.path.join(DATA, "goldens")
MERGES = 1200
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
TEXTS = [
    "", " ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", "a", " a", "a ", "  a  b", "the boat", "The Boat", "THE BOAT",
    "Once upon a time, there was a boat.", " Once upon a time", "don't we'll I'M they'RE it's", "'s", "''", "x'y'z",
    "1", "12", "123", "1234", "12345678", "3.1415", "1,000,000", "a1b22c333", "v1.2.3-rc4", "\u00b2\u00b3", "\u0661\u0662\u0663",
    "caf\u00e9", "cafe\u0301", "\u00e5\u00e4\u00f6 \u00df \u00d8", "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440!",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002", "\u3053\u3093\u306b\u3061\u306f \u4e16\u754c", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\u0645\u0631\u062d\u0628\u0627", "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467", "\ufeffbom", "\u00a0nbsp\u2003em",
    "if (x == 0) { return y[i++]; }", "def f(x):\n    return x ** 2\n", "<s> </s> <unk>", "<|endoftext|>", "a\u2581b", "!!! ??? ...",
    "-- --- _ __ #", "https://example.org/a?b=c&d=%20", "tab\tand\nline\r\nend ", "\n\n  \n x", "word" * 12, "\x01\x7f",
]
RANGES = [(0x20, 0x7e), (0x61, 0x7a), (0xa0, 0x17f), (0x391, 0x3c9), (0x410, 0x44f), (0x4e00, 0x4fff), (0x1f600, 0x1f64f)]


def texts():
    rng = random.Random(7)
    out = list(TEXTS)
    for _ in range(60):
        pieces = [rng.choice((" ", "  ", "\n", "the", " was", "'ll", "42")) if rng.random() < 0.3 else
                  "".join(chr(rng.randint(*rng.choice(RANGES))) for _ in range(rng.randint(1, 5)))
                  for _ in range(rng.randint(1, 14))]
        out.append("".join(pieces))
    return out


def small_bytes(path):
    """The tokenizer cut down to the single bytes, the added tokens and the first merges."""
    with open(path, encoding="utf8") as f:
        t = json.load(f)
    merges = [m if isinstance(m, list) else m.split(" ") for m in t["model"]["merges"][:MERGES]]
    made = {a + b for a, b in merges}
    added = {a["content"] for a in t["added_tokens"]}
    t["model"]["merges"] = merges
    t["model"]["vocab"] = {k: i for k, i in t["model"]["vocab"].items() if len(k) == 1 or k in made or k in added}
    return t


def write(name, value):
    with open(os.path.join(GOLDENS, name), "w", encoding="utf8") as f:
        json.dump(value, f, ensure_ascii=True, separators=(",", ":") if "tokenizers" in name else None, indent=None)
        f.write("\n")


def main(path):
    os.makedirs(os.path.join(GOLDENS, "tokenizers"), exist_ok=True)
    base = small_bytes(path)
    write("tokenizers/bytes.json", base)
    split = {"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": False}
    raw = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    write("tokenizers/bytes-llama3.json", {**base, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, raw]}})
    out = {"texts": texts()}
    for name in ("stories260K/tokenizer.json", "goldens/tokenizers/bytes.json", "goldens/tokenizers/bytes-llama3.json"):
        t = tokenizers.Tokenizer.from_file(os.path.join(DATA, name))
        out[name] = {"plain": [t.encode(s, add_special_tokens=False).ids for s in out["texts"]],
                     "special": [t.encode(s, add_special_tokens=True).ids for s in out["texts"][:20]]}
    write("tokens.json", out)

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    with torch.device("meta"):
        m = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(os.path.join(GOLDENS, "made")))
    write("names.json", {k: list(v.shape) for k, v in m.state_dict().items()})


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
