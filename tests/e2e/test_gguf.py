#!/usr/bin/env python3
"""archive.form: gguf. The files are read here by the format's own definition and hold, block by block, the codes and scales
of the packed form, with rows of q and k where llama.cpp looks for them; what it needs to know of sizes and vocabulary; the
same bytes on any ranks and after a kill. bench/gguf_perplexity.py compares with llama.cpp itself."""
import array
import json
import os
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import make_model  # noqa: E402
from spin import TEXT, Case, main, settings, spin, tar_hashes, unpack  # noqa: E402

GGUF = ("archive.form=gguf", "archive.name=m")
TWIN = ("archive.form=pack-quantized", "archive.name=m", "archive.dtype=fp16", "weights.group=32")
NAMES = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
         "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}


def gguf_name(name):
    """Of a tensor of a Hugging Face checkpoint."""
    words, end = name.rsplit(".", 1)
    if words.startswith("model.layers."):
        _, _, layer, rest = words.split(".", 3)
        return f"blk.{layer}.{NAMES[rest]}.{end}"
    return {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}[words] + "." + end


class Reader:
    """A file of GGUF version 3: self.pairs, and self.tensors of (sizes with the innermost first, type, bytes)."""

    def __init__(self, path):
        with open(path, "rb") as f:
            self.data = f.read()
        self.at = 0
        magic, version, n_tensors, n_pairs = self.take("<4sIQQ")
        assert (magic, version) == (b"GGUF", 3)
        self.pairs = {}
        for _ in range(n_pairs):
            key = self.string()
            assert key not in self.pairs, key
            self.pairs[key] = self.value(self.take("<I")[0])
        infos = []
        for _ in range(n_tensors):
            name, dims = self.string(), self.take("<I")[0]
            sizes = self.take(f"<{dims}Q")
            infos.append((name, sizes, *self.take("<IQ")))
        start, end = (self.at + 31) // 32 * 32, 0
        assert not any(self.data[self.at:start])
        self.tensors = {}
        for name, sizes, kind, offset in infos:
            per, size = {0: (1, 4), 1: (1, 2), 30: (1, 2), 2: (32, 18), 8: (32, 34)}[kind]
            n = size
            for s in sizes:
                n *= s
            n //= per
            assert offset == (end + 31) // 32 * 32, "padded to 32, nothing between"
            end = offset + n
            self.tensors[name] = sizes, kind, self.data[start + offset:start + end]
        assert len(self.data) == start + (end + 31) // 32 * 32

    def take(self, form):
        got = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return got

    def string(self):
        n, = self.take("<Q")
        self.at += n
        return self.data[self.at - n:self.at].decode()

    def value(self, kind):
        if kind == 8:
            return self.string()
        if kind == 9:
            of, n = self.take("<IQ")
            return [self.value(of) for _ in range(n)]
        return self.take({2: "<H", 4: "<I", 5: "<i", 6: "<f", 7: "<?"}[kind])[0]


def places(config, name, n):
    """The row of the checkpoint that stands in each row of the file: the two of a pair, half a head apart, side by side."""
    if ".q_proj." not in name and ".k_proj." not in name:
        return range(n)
    half = config["head_dim"] // 2
    return [h * 2 * half + part * half + i for h in range(n // (2 * half)) for i in range(half) for part in (0, 1)]


def blocks(packed, name, bits):
    """Rows of Q4_0 or Q8_0 from the words and scales of the packed form; bytes of each row."""
    words = array.array("I", packed[name + "_packed"][2])
    _, (rows, groups), scales = packed[name + "_scale"]
    out = []
    for r in range(rows):
        row = b""
        for g in range(groups):
            per = 32 // bits
            first = (r * groups + g) * 32 // per
            codes = [words[first + j // per] >> bits * (j % per) & (1 << bits) - 1 for j in range(32)]
            row += scales[2 * (r * groups + g):2 * (r * groups + g) + 2]
            row += bytes(codes[j] | codes[j + 16] << 4 for j in range(16)) if bits == 4 else bytes(c ^ 128 for c in codes)
        out.append(row)
    return out


class Gguf(Case):
    def quantize(self, name, model, *more, text=(), **how):
        out = self.path(name)
        self.good("quantize", "--model", model, "--out", out, *text, *settings(*more), **how)
        return out

    def files(self, out):
        folder = unpack(out, out + "-hf")
        return [Reader(os.path.join(folder, n)) for n in sorted(os.listdir(folder)) if n.endswith(".gguf")]

    def twin(self, out):
        folder, tensors = unpack(out, out + "-hf"), {}
        for n in sorted(os.listdir(folder)):
            if n.endswith(".safetensors"):
                tensors.update(make_model.read_safetensors(os.path.join(folder, n))[0])
        with open(os.path.join(folder, "config.json")) as f:
            return tensors, json.load(f)

    def compare(self, readers, packed, config, bits, plain):
        """Every tensor of the file is that of the packed form or plain folder, and no other is there."""
        got = {k: v for r in readers for k, v in r.tensors.items()}
        names = {k[:-len("_packed")] for k in packed if k.endswith("_packed")}
        rest = {k for k in packed if k.rsplit(".", 1)[-1] in ("weight", "bias")}
        self.assertEqual({gguf_name(k) for k in names | rest}, set(got) - {"rope_freqs.weight"})
        for name in names:
            rows, (sizes, kind, data) = blocks(packed, name, bits), got[gguf_name(name)]
            self.assertEqual((kind, sizes), ({4: 2, 8: 8}[bits], (32 * packed[name + "_scale"][1][1], len(rows))))
            self.assertEqual(data, b"".join(rows[i] for i in places(config, name, len(rows))), name)
        for name in rest:
            dtype, shape, _ = packed[name]
            sizes, kind, data = got[gguf_name(name)]
            self.assertEqual((sizes, kind), (tuple(reversed(shape)), 0 if len(shape) == 1 else plain), name)
            want = packed[name][2]
            if len(shape) == 1:  # kept in fp32
                data = make_model.half_bytes(array.array("f", data), dtype)
            size = len(want) // shape[0]
            self.assertEqual(data, b"".join(want[i * size:(i + 1) * size] for i in places(config, name, shape[0])), name)

    def test_blocks(self):
        """Q4_0 by GPTQ, on any ranks and after a kill, and Q8_0; biases, groups of query heads, several files."""
        model = make_model.make(self.path("m"), "--biases", "--dtype", "F16")
        gptq = ("weights.method=gptq", "weights.stream=quantized", "calib.windows=4", "calib.window=64")
        for bits, more, text in ((4, gptq, ["--calib", TEXT]), (8, ("archive.shard_bytes=200K",), [])):
            words = (f"weights.bits={bits}", *more)
            out = self.quantize(f"g{bits}", model, *GGUF, *words, text=text, ranks=3)
            again = self.path(f"again{bits}")
            args = ["quantize", "--model", model, "--out", again, *text, *settings(*GGUF, *words)]
            if text:
                self.assertEqual(spin(*args, env={"SPINSHARD_FAULT": "rename:4:0:kill"}).rc, -9)
            self.good(*args)
            self.assertEqual(tar_hashes(out), tar_hashes(again))
            packed, config = self.twin(self.quantize(f"t{bits}", model, *words, *TWIN, text=text))
            readers = self.files(out)
            self.compare(readers, packed, config, bits, 1)
            self.assertEqual(len(readers) > 1, bits == 8)
            for i, r in enumerate(readers):
                split = [r.pairs.get("split." + k) for k in ("no", "count", "tensors.count")]
                all_tensors = sum(len(x.tensors) for x in readers)
                self.assertEqual(split, [i, len(readers), all_tensors] if bits == 8 else [None] * 3)
                self.assertEqual("general.architecture" in r.pairs, i == 0)
            self.assertEqual(readers[0].pairs["general.file_type"], {4: 2, 8: 7}[bits])
            self.assertIn("verified", self.good("verify", out).out)
            self.bad(3, ["GGUF", "pack-quantized"], "eval", "--model", out, "--text", TEXT)

    def test_whole(self):
        """weights.bits: 16 in bf16, with RoPE as Llama 3.1 scales it, and what the file says of model and vocabulary."""
        model = make_model.make(self.path("m"), "--dtype", "BF16", "--untied")
        scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                   "original_max_position_embeddings": 64}
        with open(os.path.join(model, "config.json")) as f:
            config = json.load(f)
        config.update(rope_scaling=scaling, rope_theta=500000.0, eos_token_id=2)
        with open(os.path.join(model, "config.json"), "w") as f:
            json.dump(config, f)
        (reader,) = self.files(self.quantize("g", model, *GGUF, "weights.bits=16", ranks=2))
        plain, made = self.twin(self.quantize("t", model, "weights.bits=16", "archive.name=m"))
        self.compare([reader], plain, made, 16, 30)
        pairs, d = reader.pairs, config["head_dim"]
        freqs = array.array("f", reader.tensors["rope_freqs.weight"][2])
        for i, ratio in enumerate(freqs):  # the definition of Llama 3.1's scaling
            turns = 64 * 500000.0 ** (-2 * i / d) / (2 * 3.141592653589793)
            smooth = min(1, max(0, (turns - 1) / (4 - 1)))
            self.assertAlmostEqual(1 / ratio, smooth + (1 - smooth) / 8, delta=1e-6)
        self.assertEqual(len(freqs), d // 2)
        want = {"general.architecture": "llama", "general.file_type": 32, "llama.block_count": config["num_hidden_layers"],
                "llama.context_length": config["max_position_embeddings"], "llama.embedding_length": config["hidden_size"],
                "llama.feed_forward_length": config["intermediate_size"],
                "llama.attention.head_count": config["num_attention_heads"],
                "llama.attention.head_count_kv": config["num_key_value_heads"], "llama.attention.key_length": d,
                "llama.attention.value_length": d, "llama.rope.dimension_count": d, "llama.rope.freq_base": 500000.0,
                "llama.vocab_size": config["vocab_size"], "tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default",
                "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.add_bos_token": True,
                "tokenizer.ggml.add_space_prefix": True, "tokenizer.ggml.unknown_token_id": 0}
        self.assertEqual({k: pairs.get(k) for k in want}, want)
        with open(os.path.join(model, "tokenizer.json")) as f:
            bpe = json.load(f)["model"]
        tokens, kinds, scores = (pairs["tokenizer.ggml." + k] for k in ("tokens", "token_type", "scores"))
        self.assertEqual(tokens, sorted(bpe["vocab"], key=bpe["vocab"].get))
        self.assertEqual(kinds[:4] + kinds[-1:], [2, 3, 3, 6, 1])
        made_by = [bpe["vocab"]["".join(m if isinstance(m, list) else m.split(" "))] for m in bpe["merges"]]
        self.assertEqual([scores[i] for i in dict.fromkeys(made_by)], sorted({scores[i] for i in made_by}, reverse=True))
        self.assertEqual(scores[made_by[0]], 0)

    def test_refused(self):
        model = make_model.make(self.path("m"))
        for words, more in ((["weights.bits", "4, 8 or 16"], ["weights.bits=3"]), (["weights.group", "32"], ["weights.group=64"]),
                            (["weights.symmetric"], ["weights.symmetric=false"]), (["rotate.online", "R4"], ["rotate.online=[r4]"])):
            self.bad(2, words, "quantize", "--model", model, "--out", self.path("bad"), *settings(*GGUF, *more), out=self.path("bad"))

    def test_other_than_llama(self):
        """What the reader would compute or split otherwise is refused before the work, by name."""
        for name, code, words, change in (
                ("config.json", 2, ["archive.form", "yarn"],
                 lambda c: c.update(rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64})),
                ("tokenizer.json", 3, ["tokenizer.json", "pre_tokenizer"],
                 lambda t: (t["model"].update(byte_fallback=False), t.update(pre_tokenizer={"type": "Whitespace"})))):
            model = make_model.make(self.path("m-" + name))
            path = os.path.join(model, name)
            with open(path) as f:
                value = json.load(f)
            change(value)
            with open(path, "w") as f:
                json.dump(value, f)
            r = self.bad(code, words, "quantize", "--model", model, "--out", self.path("bad"), *settings(*GGUF), out=self.path("bad"))
            self.assertNotIn("pack", r.err)


if __name__ == "__main__":
    main()
