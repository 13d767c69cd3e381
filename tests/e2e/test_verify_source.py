#!/usr/bin/env python3
"""`verify --source`: no sound archive misses its bounds, also where nothing holds the weights of GPTQ (2 bits, inputs that
are zero), and one whose values are not those of its source does, although every hash fits."""
import hashlib
import json
import os
import shutil
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import make_model  # noqa: E402
from spin import STORIES, TEXT, Case, main, settings, unpack  # noqa: E402

GPTQ = ["--calib", TEXT, *settings("weights.method=gptq", "calib.windows=4", "calib.window=64")]
GPTAQ = ["--calib", TEXT, *settings("weights.method=gptaq", "weights.stream=quantized", "activations.bits=8",
                                    "calib.windows=4", "calib.window=64")]
UP, V, O = (f"model.layers.1.{n}_proj.weight" for n in ("mlp.up", "self_attn.v", "self_attn.o"))


def edited(to, change):
    """STORIES with other tensors."""
    shutil.copytree(STORIES, to)
    path = os.path.join(to, "model.safetensors")
    tensors, meta = make_model.read_safetensors(path)
    change(tensors)
    make_model.write_safetensors(path, tensors, meta)
    return to


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def forge(out, name, change):
    """Other bytes for a tensor of an archive, and the hashes that fit them."""
    path = os.path.join(out, "manifest.json")
    with open(path) as f:
        m = json.load(f)
    (tar,) = m["tars"]
    with open(os.path.join(out, tar["file"]), "rb") as f:
        data = bytearray(f.read())
    entry = next(e for e in m["entries"] if e["name"].endswith(".safetensors"))
    at = entry["offset"]
    n = struct.unpack_from("<Q", data, at)[0]
    t = json.loads(data[at + 8:at + 8 + n])[name]
    begin, end = (at + 8 + n + x for x in t["data_offsets"])
    new = change(bytes(data[begin:end]), t["shape"])
    assert len(new) == end - begin and new != data[begin:end]
    data[begin:end] = new
    entry["sha256"] = sha256(data[at:at + entry["bytes"]])
    tar["sha256"] = sha256(data)
    with open(os.path.join(out, tar["file"]), "wb") as f:
        f.write(data)
    with open(path, "w") as f:
        json.dump(m, f)


def next_row(data, shape):
    """Row i gets what row i + 1 had."""
    n = len(data) // shape[0]
    return data[n:] + data[:n]


def one_code(data, shape):
    """Codes 0 to 7 of the first word turn over by half their range."""
    return bytes(b ^ 0x88 for b in data[:4]) + data[4:]


class VerifySource(Case):
    def tensors(self, out):
        folder = unpack(out, out + "-hf")
        name = next(n for n in os.listdir(folder) if n.endswith(".safetensors"))
        return make_model.read_safetensors(os.path.join(folder, name))[0]

    def test_inputs_that_are_zero(self):
        """No o_proj of a layer without values has an input: its codes are those of rounding to nearest."""
        def no_values(tensors):
            dtype, shape, data = tensors[V]
            tensors[V] = dtype, shape, bytes(len(data))
        model, got = edited(self.path("m"), no_values), {}
        for name, words in (("rtn", []), ("gptq", GPTQ), ("gptaq", GPTAQ)):
            out = self.path(name)
            self.good("quantize", "--model", model, "--out", out, *words, *settings("weights.symmetric=false"))
            self.good("verify", out, "--source", model, "--equivalence")
            got[name] = self.tensors(out)
        for part in ("packed", "scale", "zero_point"):
            for name in ("gptq", "gptaq"):
                self.assertEqual(got[name][f"{O}_{part}"], got["rtn"][f"{O}_{part}"], name)
        self.assertNotEqual(got["gptq"][UP + "_packed"], got["rtn"][UP + "_packed"])

    def test_two_bits(self):
        for symmetric in ("true", "false"):
            for scale in ("max", "search"):
                out = self.path(f"{symmetric}-{scale}")
                self.good("quantize", "--model", STORIES, "--out", out, *GPTQ,
                          *settings("weights.bits=2", f"weights.symmetric={symmetric}", f"weights.scale={scale}"))
                self.good("verify", out, "--source", STORIES, ranks=2)

    def test_small_scales(self):
        """Scales below the normal numbers of fp16."""
        out = self.path("out")
        self.good("quantize", "--model", STORIES, "--out", out,
                  *settings("weights.bits=8", "weights.symmetric=false", "weights.group=1", "archive.dtype=fp16"))
        self.good("verify", out, "--source", STORIES)

    def test_forged_values(self):
        for name, words in (("rtn", []), ("gptq", GPTQ), ("gptaq", GPTAQ)):
            whole = self.path(name)
            self.good("quantize", "--model", STORIES, "--out", whole, *words)
            self.good("verify", whole, "--source", STORIES)
            forgeries = {"another row's scales": (UP + "_scale", next_row)}
            if name != "gptaq":
                forgeries["another row's codes"] = (UP + "_packed", next_row)
            if name == "rtn":
                forgeries["one word of codes"] = (UP + "_packed", one_code)
            for what, (tensor, change) in forgeries.items():
                with self.subTest(f"{name}: {what}"):
                    out = self.path("forged")
                    shutil.copytree(whole, out)
                    forge(out, tensor, change)
                    self.good("verify", out)  # every hash fits
                    for ranks in (0, 2):
                        self.bad(4, [r"layers\.1\.mlp\.up_proj"], "verify", out, "--source", STORIES, ranks=ranks)
                    shutil.rmtree(out)


if __name__ == "__main__":
    main()
