#!/usr/bin/env python3
"""Write the first inputs of the fuzz targets: one well-formed file of each kind, a few bytes large.

usage: python3 tests/fuzz/make_corpus.py FOLDER     writes FOLDER/<target>/seed-<target>-<what>

The kept corpus (tests/fuzz/corpus) holds these and what fuzzing has found beyond them.
"""
import hashlib
import io
import json
import os
import struct
import sys
import tarfile

MARK = b"\n%%\n"


def safetensors(tensors, metadata=None):
    """tensors: {name: (dtype, shape, bytes)}."""
    header, end = {}, 0
    if metadata:
        header["__metadata__"] = metadata
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values())


def f64(*values):
    return struct.pack(f"<{len(values)}d", *values)


def identity(n, kind="d"):
    return struct.pack(f"<{n * n}{kind}", *(float(i == j) for i in range(n) for j in range(n)))


def headers():
    yield "none", safetensors({})
    yield "two", safetensors({"a": ("F32", [1, 2], bytes(8)), "b.c": ("BF16", [3], bytes(6))}, {"format": "pt", "x": "y"})
    yield "kinds", safetensors({t: (t, s, bytes(n)) for t, s, n in (
        ("BOOL", [1], 1), ("U8", [], 1), ("I16", [0, 4], 0), ("F16", [1, 1, 1], 2), ("I64", [2], 16), ("F64", [1], 8),
        ("F8_E4M3", [3], 3), ("F4", [2], 1), ("F6_E2M3", [4], 3), ("C64", [1], 8))})
    text = b' {"\\u0061\\ud83d\\ude00\xc3\xa9" : {"shape":[ 1 ],"data_offsets":[0,1],"dtype":"\\u00558"} } '
    yield "escapes", struct.pack("<Q", len(text)) + text + b"\0"


CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 8,
          "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
          "vocab_size": 16, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0}


def configs():
    def text(**more):
        return json.dumps({**CONFIG, **more}).encode()
    yield "llama1", text(rope_scaling=None, bos_token_id=1, eos_token_id=2, tie_word_embeddings=True)
    yield "qwen2", text(architectures=["Qwen2ForCausalLM"], model_type="qwen2", use_sliding_window=True, sliding_window=4,
                        max_window_layers=1, rope_scaling={"type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 1.2,
                                                           "beta_fast": 32, "beta_slow": 1, "truncate": False})
    yield "qwen3", text(architectures=["Qwen3ForCausalLM"], model_type="qwen3", head_dim=6, use_sliding_window=True,
                        layer_types=["full_attention", "sliding_attention"], rope_scaling={"type": "dynamic", "factor": 2})
    yield "smollm3", text(architectures=["SmolLM3ForCausalLM"], model_type="smollm3", no_rope_layers=[1, 0])
    yield "granite", text(architectures=["GraniteForCausalLM"], model_type="granite", embedding_multiplier=12, logits_scaling=8,
                          residual_multiplier=0.22, attention_multiplier=0.0625)
    yield "llama3", text(head_dim=4, attention_bias=True, mlp_bias=True, eos_token_id=[1, 2], rope_scaling={
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32})
    yield "linear", text(rope_scaling={"type": "linear", "factor": 2}, partial_rotary_factor=1.0)
    yield "mistral", text(architectures=["MistralForCausalLM"], model_type="mistral", sliding_window=None,
                          rope_parameters={"rope_type": "default", "rope_theta": 5e5})


def checkpoints():
    config = json.dumps(CONFIG).encode()
    one = safetensors({"a": ("F32", [2], bytes(8))}, {"tied": "a"})
    two = safetensors({"b": ("BF16", [1, 1], bytes(2))})
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = json.dumps({"metadata": {"total_size": 10}, "weight_map": {"a": names[0], "tied": names[0], "b": names[1]}})
    yield "single", config + MARK + one
    yield "sharded", MARK.join([config, index.encode(), one, two])
    quantized = {**CONFIG, "quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}}
    yield "quantized", json.dumps(quantized).encode() + MARK + two


def tokenizers():
    words = "a b c d ab abc \u2581 \u2581a <unk> <0x41> e f . 1 2".split()
    plain = {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True,
             "vocab": {w: i for i, w in enumerate(words)}, "merges": ["a b", "ab c", "\u2581 a"]}
    spaces = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"},
                                                  {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]}
    special = [{"id": 15, "content": "<s>", "special": True, "lstrip": True, "rstrip": True},
               {"id": 16, "content": "ab", "normalized": True, "single_word": True}]
    template = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                                                         {"Sequence": {"id": "A", "type_id": 0}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [15], "tokens": ["<s>"]}}}

    def text(sample, **parts):
        return json.dumps(parts, ensure_ascii=False).encode() + MARK + sample
    yield "pieces", text(b"abc a <s> e", model=plain, normalizer=spaces, pre_tokenizer=None,
                         added_tokens=special[:1], post_processor=template)
    yield "metaspace", text(b"abc a", model={**plain, "merges": [["a", "b"]]},
                            pre_tokenizer={"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first"})
    split = {"type": "Split", "pattern": {"Regex": "(?i:'s|'t)|\\p{N}{1,3}| ?[^\\s\\p{L}]+[\\r\\n]*|\\s+(?!\\S)|\\s+"},
             "behavior": "Isolated", "invert": False}
    letters = {chr(c): i for i, c in enumerate([*range(33, 127), 0x120, 0x10A])}
    level = {"type": "BPE", "ignore_merges": True, "vocab": {**letters, "ab": 200, "\u0120a": 201},
             "merges": ["a b", "\u0120 a"]}
    yield "bytes", text(b"it's 1234 ab\n", model=level, normalizer={"type": "NFC"}, pre_tokenizer={
        "type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}]},
        post_processor={"type": "Sequence", "processors": [{"type": "ByteLevel"}]})
    yield "others", text(b"A1-b, c", model=plain, normalizer={"type": "Sequence", "normalizers": [
        {"type": "NFKC"}, {"type": "Lowercase"}, {"type": "Strip", "strip_left": True, "strip_right": False}]},
        added_tokens=special, pre_tokenizer={"type": "Sequence", "pretokenizers": [
            {"type": "Whitespace"}, {"type": "Punctuation", "behavior": "MergedWithPrevious"},
            {"type": "Digits", "individual_digits": True}, {"type": "CharDelimiterSplit", "delimiter": "-"},
            {"type": "Split", "pattern": {"String": "b"}, "behavior": "MergedWithNext", "invert": True}]})


def recipes():
    yield "keys", b"recipe_version: 1\nseed: 7\nrotate: {r1: true, r2: head, start: pca, online: [r3, r4], r4_block: 4}\n"
    yield "phases", (b"learn:\n  - {objective: range, steps: 3, rows: 64}\n  - objective: kl-top\n    top_k: 10\n"
                     b"weights:\n  group: 32\n  scale: search\n")
    yield "odd", b"--- # text\n\"seed\": 0x10\narchive: {shard_bytes: \"4G\", name: 'a\\b'}\nkv: {bits: 4, clip: .9}\n...\n"


def tar(entries, kind=tarfile.PAX_FORMAT):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=kind) as t:
        for name, data, *more in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in (more[0] if more else {}).items():
                setattr(info, key, value)
            t.addfile(info, io.BytesIO(data))
    data = out.getvalue()
    return data.rstrip(b"\0") + bytes(-len(data.rstrip(b"\0")) % 512 + 1024)


def archives():
    yield "two", tar([("m/config.json", b"{}"), ("m/model.safetensors", bytes(600))])
    yield "pax", tar([("m/a", b"x", {"pax_headers": {"mtime": "1.5", "size": "1", "path": "m/b"}}), ("m/c" + "d" * 200, b"y")])
    yield "gnu", tar([("m/" + "e" * 180, b"z")], tarfile.GNU_FORMAT)
    yield "link", tar([("m/a", b"x"), ("m/b", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"})])
    yield "sparse", tar([("m/a", b"x", {"pax_headers": {"GNU.sparse.map": "0,1", "GNU.sparse.size": "4"}})])


def manifests():
    digest = hashlib.sha256(b"").hexdigest()
    yield "one", json.dumps({
        "format": "spinshard-manifest/1", "name": "m",
        "source": {"architecture": "LlamaForCausalLM", "safetensors": [
            {"file": "model.safetensors", "bytes": 10, "header_sha256": digest}]},
        "recipe": {"seed": 0}, "tars": [{"file": "m-00001-of-00001.tar", "bytes": 3072, "sha256": digest}],
        "entries": [{"tar": "m-00001-of-00001.tar", "name": "m/config.json", "offset": 512, "bytes": 2, "sha256": digest},
                    {"tar": "m-00001-of-00001.tar", "name": "m/model.safetensors", "offset": 1536, "bytes": 600,
                     "sha256": digest}]}).encode()


def run_states():
    def body(n):
        return json.dumps({"format": "spinshard-state/1", "generation": n, "slice": 1, "phase": "gptq",
                           "fingerprint": {"config_sha256": "ab", "recipe": {"seed": 0}},
                           "work": {"items": [{"object": "cd", "bytes": 8}], "learning": {"doubles": 4}}}).encode()
    yield "two", b"#" + body(2) + MARK + body(1)
    line = body(3)
    yield "whole", b'[\n{"sha256":"' + hashlib.sha256(line).hexdigest().encode() + b'","body":' + line + b"}\n]\n"


def rotation_files():
    r2 = {f"model.layers.{i}.self_attn.R2": ("F64", [4, 4], identity(4)) for i in (0, 1)}
    yield "layer", safetensors({"R1": ("F64", [8, 8], identity(8)), **r2}, {"seed": "0"})
    yield "head", safetensors({f"model.layers.{i}.self_attn.R2": ("F32", [2, 4, 4], identity(4, "f") * 2) for i in (0, 1)})
    scales = {}
    for i in (0, 1):
        for key, shape in (("input_layernorm.S", [8]), ("post_attention_layernorm.S", [8]), ("self_attn.S_vo", [2, 4]),
                           ("self_attn.S_qk", [2, 4]), ("mlp.S_ud", [12])):
            n = shape[0] * (shape[1] if len(shape) > 1 else 1)
            scales[f"model.layers.{i}.{key}"] = ("F64", shape, f64(*[2.0] * n))
    yield "scales", safetensors(scales)


def tasks():
    yield "choices", b'{"query": "2 + 2 =", "choices": ["4", " five"], "gold": 0}\n{"gold":1,"choices":["a","b"],"query":""}\n'
    yield "contexts", b'{"contexts": ["He", "She"], "continuation": " ran\\u00e9", "gold": 1}\n\n'
    yield "word", b'{"context": "Once upon a", "continuation": " time"}'


TARGETS = {"safetensors": headers, "config": configs, "checkpoint": checkpoints, "tokenizer": tokenizers,
           "recipe": recipes, "tar": archives, "manifest": manifests, "run_state": run_states,
           "rotation_file": rotation_files, "tasks": tasks}


def main():
    for target, seeds in TARGETS.items():
        folder = os.path.join(sys.argv[1], target)
        os.makedirs(folder, exist_ok=True)
        for what, data in seeds():
            with open(os.path.join(folder, f"seed-{target}-{what}"), "wb") as f:
                f.write(data)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main()
