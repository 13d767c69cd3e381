#!/usr/bin/env python3
"""archive.form: which recipes become int-quantized, what is said of those that cannot; what such an archive holds;
folders unpacked from an archive are evaluated as it is; scale.start: smooth against a reference from its definition."""
import array
import json
import math
import os
import shutil
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import make_model  # noqa: E402
from spin import STORIES, TEXT, Case, main, settings, spin, tar_hashes, unpack  # noqa: E402

FP32 = ["--dtype", "fp32"]
INT8 = ("activations.bits=8", "activations.symmetric=true", "activations.o_group=token", "activations.scale=compressed-tensors")


def tensors_of(folder):
    return make_model.read_safetensors(os.path.join(folder, "model-00001-of-00001.safetensors"))[0]


def config_of(folder):
    with open(os.path.join(folder, "config.json")) as f:
        return json.load(f)


def floats(tensor):
    """Values of a BF16 or F32 tensor."""
    dtype, _, data = tensor
    if dtype == "F32":
        return array.array("f", data)
    halves = array.array("H", data)
    return array.array("f", array.array("I", [h << 16 for h in halves]).tobytes())


class Forms(Case):
    def quantize(self, name, *more, model=STORIES, text=False, **how):
        out = self.path(name)
        r = self.good("quantize", "--model", model, "--out", out, *(["--calib", TEXT] if text else []), *settings(*more), **how)
        return out, r

    def test_codes_are_those_of_the_packed_form(self):
        """The same numbers in both forms: unpacked here from the words, by the definition of the words."""
        a, _ = self.quantize("a", *INT8, "archive.form=pack-quantized", "archive.name=x")
        b, _ = self.quantize("b", *INT8, "archive.form=int-quantized", "archive.name=x", ranks=3)
        packed, plain = tensors_of(unpack(a, a + "-hf")), tensors_of(unpack(b, b + "-hf"))
        linears = [k[:-len("_packed")] for k in packed if k.endswith(".weight_packed")]
        self.assertEqual(len(linears), 35)
        self.assertEqual({k for k in plain if not k.endswith("_scale")},
                         {k for k in packed if not k.endswith(("_packed", "_shape", "_scale"))} | set(linears))
        for name in linears:
            dtype, (rows, cols), data = plain[name]
            words, want = array.array("I", packed[name + "_packed"][2]), array.array("b")
            per_row = len(words) // rows
            for i in range(rows):
                for j in range(cols):
                    want.append((words[i * per_row + j // 8] >> 4 * (j % 8) & 15) - 8)
            self.assertEqual((dtype, data), ("I8", want.tobytes()), name)
            self.assertEqual(plain[name + "_scale"], packed[name + "_scale"])
        self.assertEqual(self.perplexity(a, TEXT, 128, *FP32), self.perplexity(b, TEXT, 128, *FP32))

    def gptq_of(self, packed, name, bits):
        """The tensors of GPTQ's first version, by its definition, from the words of a packed linear of 4 or 8 bits."""
        words, (rows, _), a_word = array.array("I", packed[name + ".weight_packed"][2]), packed[name + ".weight_packed"][1], 32 // bits
        per_row, mask = len(words) // rows, (1 << bits) - 1
        code = [[words[o * per_row + i // a_word] >> bits * (i % a_word) & mask for i in range(per_row * a_word)]
                for o in range(rows)]
        cols = len(code[0])
        qweight = array.array("I", (sum(code[o][i + k] << bits * k for k in range(a_word))
                                    for i in range(0, cols, a_word) for o in range(rows)))
        dtype, (_, groups), data = packed[name + ".weight_scale"]
        scale = array.array("H", data)
        zero = (1 << bits - 1) - 1  # less one
        qzeros = array.array("I", [sum(zero << bits * k for k in range(a_word))] * (groups * rows // a_word))
        return {"qweight": ("I32", [cols // a_word, rows], qweight.tobytes()),
                "qzeros": ("I32", [groups, rows // a_word], qzeros.tobytes()),
                "scales": (dtype, [groups, rows], array.array("H", (scale[o * groups + g] for g in range(groups) for o in range(rows))).tobytes()),
                "g_idx": ("I32", [cols], array.array("i", (i * groups // cols for i in range(cols))).tobytes())}

    def test_gptq(self):
        """Every tensor of the form gptq against a packer written here, for both widths, by group and by channel; the same
        numbers are evaluated as of the packed form, from tars and from the folder; what others write otherwise is refused."""
        model = make_model.make(self.path("m"), "--dtype", "BF16")
        for bits, group in ((4, 32), (8, 32), (4, "channel")):
            how = (f"weights.bits={bits}", f"weights.group={group}", "archive.name=x", "archive.dtype=fp16")
            a, _ = self.quantize(f"a{bits}{group}", *how, "archive.form=pack-quantized", model=model)
            b, _ = self.quantize(f"b{bits}{group}", *how, "archive.form=gptq", model=model, ranks=3)
            one, _ = self.quantize(f"c{bits}{group}", *how, "archive.form=gptq", model=model)
            self.assertEqual(tar_hashes(b), tar_hashes(one))
            folder = unpack(b, b + "-hf")
            packed, got = tensors_of(unpack(a, a + "-hf")), tensors_of(folder)
            names = [k[:-len(".weight_packed")] for k in packed if k.endswith(".weight_packed")]
            want = {k: v for k, v in packed.items() if ".weight_" not in k}
            for name in names:
                want.update({f"{name}.{k}": v for k, v in self.gptq_of(packed, name, bits).items()})
            self.assertEqual({k: (d, list(s)) for k, (d, s, _) in got.items()}, {k: (d, list(s)) for k, (d, s, _) in want.items()})
            for k, (_, _, data) in want.items():
                self.assertEqual(bytes(got[k][2]), bytes(data), k)
            self.assertEqual(config_of(folder)["quantization_config"], {
                "quant_method": "gptq", "bits": bits, "group_size": -1 if group == "channel" else group, "desc_act": False,
                "sym": True, "lm_head": False, "checkpoint_format": "gptq"})
            loss = self.perplexity(a, TEXT, 128, *FP32)
            self.assertEqual(loss, self.perplexity(b, TEXT, 128, *FP32))
            self.assertEqual(loss, self.perplexity(folder, TEXT, 128, *FP32))
            self.good("verify", b, "--source", model, "--equivalence")
            self.good("verify", b, "--for", "transformers")
            self.assertIn("gptqmodel", str(self.good("inspect", b, "--json").json()["runtimes"]["transformers"]))

        self.bad(3, ["already"], "quantize", "--model", folder, "--out", self.path("twice"), out=self.path("twice"))

        def spoil(to, suffix, data):
            shutil.copytree(folder, to)
            path = os.path.join(to, "model-00001-of-00001.safetensors")
            tensors, meta = make_model.read_safetensors(path)
            key = next(k for k in tensors if k.endswith(suffix))
            tensors[key] = (*tensors[key][:2], data(tensors[key][2]))
            make_model.write_safetensors(path, tensors, meta)
            return to

        evaluate = ("--text", TEXT, "--window", 128)
        self.bad(3, ["desc_act"], "eval", "--model", spoil(self.path("order"), "q_proj.g_idx", lambda d: d[4:] + d[:3] + b"\1"), *evaluate)
        self.bad(3, ["zero points"], "eval", "--model", spoil(self.path("zeros"), "q_proj.qzeros", lambda d: b"\x88" * len(d)), *evaluate)
        said = config_of(folder)
        for key, value in (("checkpoint_format", "gptq_v2"), ("sym", False), ("desc_act", True), ("bits", 3), ("lm_head", True)):
            config = {**said, "quantization_config": {**said["quantization_config"], key: value}}
            with open(os.path.join(folder, "config.json"), "w") as f:
                json.dump(config, f)
            self.bad(3, [key], "eval", "--model", folder, *evaluate)
        for word, key in (("weights.bits=3", "weights.bits"), ("weights.symmetric=false", "weights.symmetric"),
                          ("rotate.online=[r4]", "rotate.online"), ("weights.bits=16", "archive.form")):
            self.bad(2, [key], "quantize", "--model", model, "--out", self.path("bad"),
                     *settings("archive.form=gptq", "rotate.r4_block=pow2", word), out=self.path("bad"))
        self.bad(2, ["gate_proj", "172"], "quantize", "--model", STORIES, "--out", self.path("bad"), *settings("archive.form=gptq"),
                 out=self.path("bad"))

    def test_auto(self):
        for i, (more, form) in enumerate(((INT8, "int-quantized"), ((), "pack-quantized"),
                                          (("activations.bits=8",), "pack-quantized"),
                                          ((*INT8, "weights.symmetric=false"), "pack-quantized"),
                                          ((*INT8, "activations.clip=0.9"), "pack-quantized"))):
            out, r = self.quantize(f"auto{i}", *more, *(("weights.bits=8",) if form == "int-quantized" else ()))
            config = config_of(unpack(out, out + "-hf"))["quantization_config"]
            self.assertEqual(config["format"], form, more)
            says = "load in no runtime" in r.err
            self.assertEqual(says, bool(more) and form == "pack-quantized", r.err)
            self.assertEqual(config["config_groups"]["group_0"]["input_activations"] is None, form == "pack-quantized", more)
            if says:
                self.assertRegex(r.err, "activations.symmetric=true|weights.symmetric=true|activations.clip=1.0")

    def test_plain(self):
        """weights.bits: 16 is the model that would be rounded: rounding it afterwards gives the same shards, on any ranks,
        since nothing is rounded on the way from fp32 to fp32. It is read back from tars and folder, and is the source's
        function; a change of a weight is found."""
        fused = ("rotate.start=orthogonal", "rotate.r2=head", "weights.bits=16", "archive.name=x")
        plain, _ = self.quantize("p", *fused)
        again, _ = self.quantize("p3", *fused, ranks=3)
        self.assertEqual(tar_hashes(plain), tar_hashes(again))
        folder = unpack(plain, plain + "-hf")
        config = config_of(folder)
        self.assertFalse({"quantization_config", "spinshard"} & set(config))
        self.assertFalse(config["tie_word_embeddings"])
        late, _ = self.quantize("late", "rotate.r1=false", "rotate.r2=none", "weights.group=channel", model=folder)
        direct, _ = self.quantize("direct", *fused[:2], "weights.group=channel")
        self.assertEqual(tensors_of(unpack(late, late + "-hf")), tensors_of(unpack(direct, direct + "-hf")))
        got, want = self.perplexity(plain, TEXT, 128, *FP32), self.perplexity(STORIES, TEXT, 128, *FP32)
        self.assertEqual(got, self.perplexity(folder, TEXT, 128, *FP32))
        self.assertAlmostEqual(got["nll"], want["nll"], delta=2e-5)
        self.good("verify", plain, "--source", STORIES, "--equivalence")
        self.bad(2, ["plain folder"], "verify", plain, "--for", "transformers")
        other, _ = self.quantize("other", "seed=1", *fused)
        shutil.copy(os.path.join(plain, "rotations.safetensors"), other)
        self.bad(4, ["where the source gives"], "verify", other, "--source", STORIES)

    def test_inputs_behind_gains(self):
        """What is quantized is what the linears get: with scales of norms folded in, x times the gain 1/S that is left, which
        is the x/S of the source under the scales' file; with gains that nothing folds, they count too."""
        how = ("rotate.r1=false", "rotate.r2=none", "activations.bits=4", "activations.symmetric=true", "activations.o_group=token")
        out, _ = self.quantize("p", *how, "scale.pairs=[norm]", "scale.start=smooth", "calib.windows=4", "calib.window=64",
                               "weights.bits=16", "archive.dtype=same", text=True)
        there = ["--rotations", os.path.join(out, "rotations.safetensors"), *settings(*how, "rotate.r1=false")]
        got = self.perplexity(out, TEXT, 96, "--dtype", "fp64", *settings(*how, "scale.pairs=[]", "scale.start=ones"))
        want = self.perplexity(STORIES, TEXT, 96, "--dtype", "fp64", *there)
        plain = self.perplexity(STORIES, TEXT, 96, "--dtype", "fp64", *settings(*how))
        self.assertGreater(abs(plain["nll"] - want["nll"]), 0.01)  # the scales matter
        self.assertAlmostEqual(got["nll"], want["nll"], delta=2e-3)  # weights are rounded to fp32 on the way

    def test_packed_inputs(self):
        """Inputs of 8 and 4 bits, by token and by group: said in config.json, of the archive and of its folder alike
        evaluated, the same bytes on any ranks; in learning, scales and GPTQ."""
        model = make_model.make(self.path("m"), "--dtype", "BF16")
        learned = ("weights.method=gptaq", "weights.stream=quantized", "calib.windows=8", "calib.window=96", "rotate.online=[r4]",
                   "rotate.r4_block=pow2", "scale.pairs=[norm, ud]", "scale.start=closed",
                   "learn=[{objective: range, steps: 3, rows: 256, weights: true}, {objective: ce, steps: 1, batch: 2, window: 64}]")
        for bits, group, more in ((8, "token", ()), (4, 32, learned)):
            words = (f"activations.bits={bits}", "activations.symmetric=true", "activations.o_group=token",
                     f"activations.group={group}", "weights.group=32", *more)
            text = ["--calib", TEXT] if more else []
            outs = [self.path(f"o{bits}-{ranks}") for ranks in (1, 3)]
            for out, ranks in zip(outs, (1, 3)):
                self.good("quantize", "--model", model, "--out", out, *text, *settings(*words), ranks=ranks)
            self.assertEqual(tar_hashes(outs[0]), tar_hashes(outs[1]))
            folder = unpack(outs[0], outs[0] + "-hf")
            inputs = config_of(folder)["quantization_config"]["config_groups"]["group_0"]["input_activations"]
            self.assertEqual((inputs["num_bits"], inputs["strategy"], inputs.get("group_size")),
                             (bits, "token" if group == "token" else "group", None if group == "token" else group))
            got = self.perplexity(outs[0], TEXT, 96, *FP32)
            self.assertEqual(got, self.perplexity(folder, TEXT, 96, *FP32))
            self.assertNotEqual(got, self.perplexity(folder, TEXT, 96, *FP32, *settings("activations.bits=16")))
            if group != "token":
                self.assertNotEqual(got, self.perplexity(folder, TEXT, 96, *FP32, *settings("activations.group=token")))
            self.good("verify", outs[0], "--source", model, "--equivalence")

    def test_runtime_cache(self):
        """kv.rotate: runtime, through learning of both kinds and GPTQ: the same bytes on any ranks; archive and folder are
        evaluated alike and not as with R3; the card has the option, verify --for and inspect speak of it."""
        words = ("activations.bits=4", "activations.symmetric=true", "activations.o_group=token", "weights.method=gptaq",
                 "weights.stream=quantized", "calib.windows=8", "calib.window=96", "rotate.r2=head", "kv.bits=4",
                 "scale.pairs=[vo, qk]", "scale.start=closed",
                 "learn=[{objective: range, steps: 3, rows: 256}, {objective: ce, steps: 1, batch: 2, window: 64}]")
        outs = [self.path(f"o{ranks}") for ranks in (1, 3)]
        for out, ranks in zip(outs, (1, 3)):
            self.good("quantize", "--model", STORIES, "--out", out, "--calib", TEXT, *settings(*words, "kv.rotate=runtime"),
                      ranks=ranks)
        self.assertEqual(tar_hashes(outs[0]), tar_hashes(outs[1]))
        folder = unpack(outs[0], outs[0] + "-hf")
        self.assertEqual(config_of(folder)["spinshard"]["eval"]["kv"]["rotate"], "runtime")
        got = self.perplexity(outs[0], TEXT, 96, *FP32)
        self.assertEqual(got, self.perplexity(folder, TEXT, 96, *FP32))
        plain = self.perplexity(folder, TEXT, 96, *FP32, *settings("kv.bits=16"))
        for name, asked, way in (("q", "kv.rotate=runtime", 4), ("r", "kv.rotate=r3", 0), ("s", "kv.format=fp8", 8)):
            _, told = self.quantize(name, asked)  # of no use without kv.bits
            self.assertEqual(told.err.count(f"set kv.bits={way}"), way > 0, told)
            told = self.good("eval", "--model", STORIES, "--text", TEXT, "--window", 96, "--limit", 1, *settings(asked))
            self.assertEqual(told.err.count(f"set kv.bits={way}"), way > 0, told)
        for other in (plain, self.perplexity(folder, TEXT, 96, *FP32, *settings("kv.rotate=r3"))):
            self.assertNotEqual(got, other)
        # the weights hold R2, the source does not: the same function, where nothing else is rounded
        whole = settings("activations.bits=16", "rotate.r2=head", "kv.bits=4", "kv.rotate=runtime")
        there = ["--rotations", os.path.join(outs[0], "rotations.safetensors")]
        fused, _ = self.quantize("f", *whole[1::2], "weights.bits=16", "archive.dtype=same", "rotate.r1=false",
                                 f"rotate.start={there[1]}")
        a = self.perplexity(fused, TEXT, 96, "--dtype", "fp64", *settings("kv.bits=4", "kv.rotate=runtime"))
        b = self.perplexity(STORIES, TEXT, 96, "--dtype", "fp64", *there, *whole)
        self.assertAlmostEqual(a["nll"], b["nll"], delta=2e-4)  # codes that change by the weights' rounding to fp32
        with open(os.path.join(folder, "README.md")) as f:
            self.assertIn("--linear-backend humming --kv-cache-dtype int4_per_token_head\n", f.read())
        told = self.good("inspect", outs[0], "--json").json()["runtimes"]
        for runtime, says in told.items():
            self.assertIn("int4_per_token_head" if runtime == "vllm-cuda" else "cache stays at 16", str(says["notes"]))
        for word, key in (("kv.bits=8", "kv.bits"), ("kv.symmetric=true", "kv.symmetric"), ("kv.clip=0.9", "kv.clip"),
                          ("rotate.online=[r3]", "rotate.online")):
            self.bad(2, [key, "kv.rotate"], "quantize", "--model", STORIES, "--out", self.path("bad"),
                     *settings("kv.bits=4", "kv.rotate=runtime", word), out=self.path("bad"))

    def test_fp8_cache(self):
        """kv.format: fp8, through learning of both kinds and GPTQ: the same bytes on any ranks; archive and folder alike; the
        source under its rotations is the same function. Scales are in config.json and tensors, powers of two, and eval sees
        them; verify wants them; card, inspect and forms without them say what runs."""
        words = ("rotate.r2=head", "kv.bits=8", "kv.format=fp8", "weights.method=gptaq", "weights.stream=quantized",
                 "calib.windows=4", "calib.window=64", "scale.pairs=[vo, qk]", "scale.start=closed",
                 "learn=[{objective: range, steps: 2, rows: 256}, {objective: ce, steps: 1, batch: 2, window: 64}]")
        outs = [self.quantize(f"o{ranks}", *words, text=True, ranks=ranks)[0] for ranks in (1, 3)]
        again = ["quantize", "--model", STORIES, "--out", self.path("k"), "--calib", TEXT, *settings(*words)]
        killed = [spin(*again, env={"SPINSHARD_FAULT": f"unit:{unit}:0:kill"}) for unit in (5, 2)]  # what the capture found is kept
        self.assertNotIn(0, [r.rc for r in killed])
        self.assertIn("captured rows read back", killed[1].err + self.good(*again, ranks=2).err)
        self.assertEqual(tar_hashes(outs[0]), tar_hashes(self.path("k")))
        self.assertEqual(tar_hashes(outs[0]), tar_hashes(outs[1]))
        folder = unpack(outs[0], outs[0] + "-hf")
        self.assertEqual(config_of(folder)["spinshard"]["eval"]["kv"], {"bits": 8, "format": "fp8"})
        got = self.perplexity(outs[0], TEXT, 96, *FP32)
        self.assertEqual(got, self.perplexity(folder, TEXT, 96, *FP32))
        self.assertEqual(config_of(folder)["quantization_config"]["kv_cache_scheme"],
                         {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False})
        path = os.path.join(folder, "model-00001-of-00001.safetensors")
        tensors, meta = make_model.read_safetensors(path)
        scales = {k: v for k, v in tensors.items() if k.endswith((".k_scale", ".v_scale"))}
        self.assertEqual(set(scales), {f"model.layers.{i}.self_attn.{k}_scale" for i in range(5) for k in "kv"})
        for dtype, shape, data in scales.values():
            self.assertEqual((dtype, shape, math.frexp(struct.unpack("<f", data)[0])[0]), ("F32", [1], 0.5))
        self.good("verify", outs[0], "--source", STORIES, "--equivalence")
        name = "model.layers.1.self_attn.k_scale"
        small, gone = ({**tensors, name: ("F32", [1], struct.pack("<f", v))} for v in (2.0 ** -16, 0.0))
        make_model.write_safetensors(path, small, meta)  # keys are held at 448 of these: another function
        self.assertGreater(self.perplexity(folder, TEXT, 96, *FP32)["nll"], got["nll"] + 0.01)
        make_model.write_safetensors(path, gone, meta)
        self.bad(3, [name, "no scale"], "eval", "--model", folder, "--text", TEXT, "--window", 96)
        make_model.write_safetensors(path, tensors, meta)
        for other in (("kv.bits=16",), ("kv.format=int",)):
            self.assertNotEqual(got, self.perplexity(folder, TEXT, 96, *FP32, *settings(*other)))
        there = os.path.join(outs[0], "rotations.safetensors")
        cache = ("kv.bits=8", "kv.format=fp8")
        fused, _ = self.quantize("f", "weights.bits=16", "rotate.r1=false", "rotate.r2=head", f"rotate.start={there}", *cache, "calib.windows=4",
                                 "calib.window=64", text=True)
        a = self.perplexity(fused, TEXT, 96, "--dtype", "fp64", *settings(*cache))
        b = self.perplexity(STORIES, TEXT, 96, "--dtype", "fp64", "--rotations", there, *settings("rotate.r2=head", *cache))
        self.assertAlmostEqual(a["nll"], b["nll"], delta=2e-4)  # codes that change by the weights' rounding to fp32
        with open(os.path.join(folder, "README.md")) as f:
            card = f.read()
        self.assertNotIn("--kv-cache-dtype", card)
        self.assertIn("Keys and values: FP8", card)
        told = self.good("inspect", outs[0], "--json").json()["runtimes"]
        for runtime, says in told.items():
            self.assertEqual("not tried" in str(says["notes"]), "vllm" not in runtime)
            self.assertEqual("towards zero" in str(says["notes"]), runtime == "vllm-cpu")
        gguf, _ = self.quantize("g", *cache, "archive.form=gptq", "calib.windows=2", "calib.window=64", text=True,
                                model=make_model.make(self.path("m"), "--dtype", "BF16"))
        self.assertIn("--kv-cache-dtype fp8", str(self.good("inspect", gguf, "--json").json()["runtimes"]["vllm-cuda"]["notes"]))
        for word, key in (("kv.bits=4", "kv.bits"), ("kv.clip=0.9", "kv.clip"), ("rotate.online=[r3]", "rotate.online"),
                          ("kv.rotate=runtime", "kv.bits")):
            self.bad(2, [key, "fp8" if "runtime" not in word else "kv.rotate"], "quantize", "--model", STORIES, "--out",
                     self.path("bad"), *settings(*cache, word), out=self.path("bad"))

    def test_fp8_learning_sees_the_scales(self):
        """A model with keys times 2^-12 and values times 2^12, undone in q and o, is the same function in every bit, and its
        scales differ by these powers: end to end the same steps are made. With scale 1 values would be held at 448."""
        tensors, meta = make_model.read_safetensors(os.path.join(STORIES, "model.safetensors"))
        times = {"q_proj": 4096.0, "k_proj": 1 / 4096, "v_proj": 4096.0, "o_proj": 1 / 4096}
        for name, (dtype, shape, data) in tensors.items():
            for key, power in times.items():
                if key in name:
                    self.assertEqual(dtype, "F32")
                    tensors[name] = (dtype, shape, array.array("f", [v * power for v in array.array("f", data)]).tobytes())
        other = self.path("m")
        shutil.copytree(STORIES, other)
        make_model.write_safetensors(os.path.join(other, "model.safetensors"), tensors, meta)
        learned, steps = [], []
        for i, model in enumerate((STORIES, other)):
            out, _ = self.quantize(f"o{i}", "rotate.r2=head", "kv.bits=8", "kv.format=fp8", "calib.windows=4", "calib.window=64",
                                   "learn=[{objective: ce, steps: 3, batch: 2, window: 64}]", text=True, model=model)
            with open(os.path.join(out, "events.jsonl")) as f:
                events = [json.loads(line) for line in f if line.startswith("{")]
            steps.append([(e["loss"], e["angle_r2"]) for e in events if e["event"] == "step"])
            learned.append(make_model.read_safetensors(os.path.join(out, "rotations.safetensors"))[0])
        self.assertEqual(len(steps[0]), 3)
        self.assertEqual(steps[0], steps[1])
        self.assertEqual({k: v for k, v in learned[0].items() if "R" in k}, {k: v for k, v in learned[1].items() if "R" in k})

    def test_fp8_values_are_no_samples(self):
        """An FP8 error is a share of each entry, which no rotation makes smaller: `range` learns what it learns without a
        cache, and for a cache of integers something else."""
        def learned(name, *cache):
            out = self.path(name)
            self.good("quantize", "--model", STORIES, "--out", out, "--calib", TEXT, *settings(
                "activations.bits=4", *cache, "calib.windows=4", "calib.window=64", "rotate.r2=head",
                "learn=[{objective: range, steps: 3, rows: 512}]"))
            return make_model.read_safetensors(os.path.join(out, "rotations.safetensors"))[0]
        none, fp8, integers = learned("n"), learned("f", "kv.bits=8", "kv.format=fp8"), learned("i", "kv.bits=8")
        rotations = [k for k in none if "R1" in k or "R2" in k]
        self.assertGreater(len(rotations), 5)
        self.assertEqual({k: none[k] for k in rotations}, {k: fp8[k] for k in rotations})
        self.assertTrue(all(none[k] != integers[k] for k in rotations if "R2" in k))

    def test_runtimes(self):
        """verify --for: exit code and reason; inspect has the same verdicts."""
        model = make_model.make(self.path("m"), "--dtype", "BF16")
        for name, words, stops in (("a", ("weights.group=32",), ()),
                                   ("b", ("weights.group=32", "weights.bits=8"), ("vllm-cpu",)),
                                   ("c", ("weights.group=32", "rotate.online=[r4]", "rotate.r4_block=pow2"),
                                    ("vllm-cpu", "transformers", "llama.cpp", "sglang"))):
            out = self.path(name)
            self.good("quantize", "--model", model, "--out", out, *settings(*words))
            told = self.good("inspect", out, "--json").json()["runtimes"]
            self.assertEqual({n for n, v in told.items() if v["stops"]}, set(stops))
            for runtime in told:
                r = spin("verify", out, "--for", runtime)
                self.assertEqual(r.rc, 4 if runtime in stops else 0, r)
                self.assertRegex(r.err if r.rc else r.out, runtime)
        self.assertIn("tensor parallelism", spin("verify", out, "--for", "vllm-cuda", "--tp", 2).err)
        self.bad(2, ["--for", "sglang"], "verify", out, "--for", "vllm")

    def test_groups_that_divide_nothing(self):
        out = self.path("bad")
        self.bad(2, ["activations.group", "172"], "quantize", "--model", STORIES, "--out", out,
                 *settings("activations.bits=4", "activations.group=32"), out=out)

    def test_contradictions(self):
        for more, key in (((), "activations.bits"), (("activations.bits=4",), "activations.bits"),
                          (("activations.bits=8",), "activations.symmetric"), ((*INT8, "activations.o_group=head"), "o_group"),
                          ((*INT8, "activations.down_bits=4"), "down_bits"), ((*INT8, "weights.symmetric=false"), "weights.symmetric")):
            out = self.path("bad")
            self.bad(2, [key, "pack-quantized"], "quantize", "--model", STORIES, "--out", out,
                     *settings(*more, "archive.form=int-quantized"), out=out)

    def test_folder_is_evaluated_as_the_archive(self):
        """4-bit activations and cache, R3 and R4 in blocks: the folder's config.json carries what eval needs."""
        model = make_model.make(self.path("m"), "--dtype", "BF16")
        out, r = self.quantize("o", "activations.bits=4", "kv.bits=4", "rotate.online=[r3, r4]", "rotate.r4_block=32", model=model)
        self.assertIn("load in no runtime", r.err)
        folder = unpack(out, out + "-hf")
        got = self.perplexity(out, TEXT, 96, *FP32)
        self.assertEqual(got, self.perplexity(folder, TEXT, 96, *FP32))
        self.assertNotEqual(got, self.perplexity(folder, TEXT, 96, *FP32, *settings("activations.bits=16", "kv.bits=16")))

    def test_damaged(self):
        """A code out of range, a tensor of another type: named, never a crash."""
        out, _ = self.quantize("o", *INT8, "archive.form=int-quantized")
        folder = unpack(out, out + "-hf")
        path = os.path.join(folder, "model-00001-of-00001.safetensors")
        name = "model.layers.1.mlp.up_proj.weight"
        tensors, meta = make_model.read_safetensors(path)
        good = tensors[name]
        for bad, says in (((good[0], good[1], b"\x08" + good[2][1:]), "out of the range of 4 bits"),
                          (("U8", good[1], good[2]), "I8"),
                          ((good[0], [good[1][0] - 1, good[1][1]], good[2][:-good[1][1]]), "size|shape")):
            tensors[name] = bad
            make_model.write_safetensors(path, tensors, meta)
            r = spin("eval", "--model", folder, "--text", TEXT, "--window", 96)
            self.assertIn(r.rc, (3, 4), r)
            self.assertRegex(r.err, f"(?s){name}.*({says})", r)


class Smooth(Case):
    def how(self, *more):
        return ["--calib", TEXT, *settings("calib.windows=4", "calib.window=96", "rotate.r1=false", "rotate.r2=none", *INT8,
                                           "weights.bits=8", "scale.start=smooth", *more)]

    def scales(self, name, *more, model=STORIES, ranks=0):
        out = self.path(name)
        self.good("quantize", "--model", model, "--out", out, *self.how(*more), ranks=ranks)
        tensors, _ = make_model.read_safetensors(os.path.join(out, "rotations.safetensors"))
        return out, {k: array.array("d", v[2]) for k, v in tensors.items()}

    def test_definition(self):
        """alpha 0 knows the weights alone: S of a norm is 1 / (largest weight of a column times its gain), over its mean."""
        model = make_model.make(self.path("m"), "--dtype", "BF16", "--untied")
        out, got = self.scales("o", "scale.pairs=[norm, ud]", "scale.alpha=0", model=model, ranks=2)
        w = make_model.read_safetensors(os.path.join(model, "model.safetensors"))[0]
        checked = 0
        for key, readers, gain in (("input_layernorm.S", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "input_layernorm"),
                                   ("post_attention_layernorm.S", ("mlp.gate_proj", "mlp.up_proj"), "post_attention_layernorm"),
                                   ("mlp.S_ud", ("mlp.down_proj",), None)):
            s = got[f"model.layers.1.{key}"]
            most = [0.0] * len(s)
            for r in readers:
                v = floats(w[f"model.layers.1.{r}.weight"])
                for j in range(len(s)):
                    most[j] = max(most[j], max(map(abs, v[j::len(s)])))
            g = floats(w[f"model.layers.1.{gain}.weight"]) if gain else [1.0] * len(s)
            want = [-math.log(max(m * abs(x), 1e-5)) for m, x in zip(most, g)]
            middle = sum(want) / len(want)
            for a, b in zip(s, want):
                self.assertAlmostEqual(math.log(a), b - middle, delta=0.005 if gain else 1e-6)  # norms are kept as bf16 gains
                checked += 1
        self.assertGreater(checked, 100)
        self.good("verify", out, "--source", model, "--equivalence", ranks=2)

    def test_activations_count(self):
        """alpha 1 knows the activations alone, and 0.5 is the geometric mean of both, but for the mean."""
        s = {a: self.scales(f"a{a}", "scale.pairs=[ud, vo]", f"scale.alpha={a}")[1] for a in (0, 0.5, 1)}
        for key in s[0]:
            n = len(s[0][key])
            if max(max(abs(math.log(x)) for x in s[a][key]) for a in s) > math.log(60):
                continue  # held at the bounds
            for j in range(n):
                self.assertAlmostEqual(math.log(s[0.5][key][j]), (math.log(s[0][key][j]) + math.log(s[1][key][j])) / 2, delta=1e-9)
            self.assertGreater(max(s[1][key]) / min(s[1][key]), 1.1)

    def test_ranks(self):
        got = {json.dumps(tar_hashes(self.scales(f"r{ranks}", "scale.pairs=[norm, vo, ud]", ranks=ranks)[0])) for ranks in (1, 2, 4)}
        self.assertEqual(len(got), 1)

    def test_contradictions(self):
        for more, says in ((("scale.pairs=[qk]",), "qk"), (("scale.pairs=[norm]", "rotate.r1=true"), "R1"),
                           (("scale.pairs=[vo]", "rotate.r2=layer"), "R2"), (("scale.pairs=[]",), "no pair"),
                           (("scale.pairs=[ud]", "rotate.online=[r4]"), "R4")):
            out = self.path("bad")
            self.bad(2, [says], "quantize", "--model", STORIES, "--out", out, *self.how(*more), out=out)


if __name__ == "__main__":
    main()
