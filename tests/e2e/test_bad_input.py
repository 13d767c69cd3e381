#!/usr/bin/env python3
"""Bad input: one clear message, the right exit code, no partial output, no hang."""
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import make_model  # noqa: E402
from spin import STORIES, TEXT, Case, main, settings, sha256, spin, tars  # noqa: E402

USAGE, INPUT, VERIFY, SPACE = 2, 3, 4, 5
CHANNEL = settings("weights.group=channel")


class BadModel(Case):
    """Checkpoints that quantize must refuse; each is tried on 1 rank and on 3."""

    def setUp(self):
        super().setUp()
        self.model = make_model.make(self.path("m"), "--layers", 2, "--shards", 2)
        self.shards = sorted(n for n in os.listdir(self.model) if n.endswith(".safetensors"))

    def refused(self, code, *words, model=None, more=()):
        for ranks in (0, 3):
            out = self.path(f"out{ranks}")
            self.bad(code, words, "quantize", "--model", model or self.model, "--out", out, *more, out=out, ranks=ranks)

    def edit(self, shard, change):
        path = os.path.join(self.model, self.shards[shard])
        tensors, meta = make_model.read_safetensors(path)
        change(tensors)
        make_model.write_safetensors(path, tensors, meta)

    def edit_json(self, name, change):
        path = os.path.join(self.model, name)
        with open(path) as f:
            value = json.load(f)
        change(value)
        with open(path, "w") as f:
            json.dump(value, f)

    def raw(self, shard, change):
        path = os.path.join(self.model, self.shards[shard])
        with open(path, "rb") as f:
            data = change(f.read())
        with open(path, "wb") as f:
            f.write(data)

    def test_good_to_begin_with(self):
        self.good("quantize", "--model", self.model, "--out", self.path("fine"))

    def test_no_such_folder(self):
        self.refused(INPUT, "nowhere", model=self.path("nowhere"))

    def test_missing_config(self):
        os.remove(os.path.join(self.model, "config.json"))
        self.refused(INPUT, "config.json")

    def test_missing_shard(self):
        os.remove(os.path.join(self.model, self.shards[1]))
        self.refused(INPUT, self.shards[1])

    def test_missing_tokenizer(self):
        os.remove(os.path.join(self.model, "tokenizer.json"))
        for ranks in (0, 3):
            self.bad(INPUT, ["tokenizer.json"], "eval", "--model", self.model, "--text", TEXT, "--window", 64, ranks=ranks)

    def test_truncated_header(self):
        self.raw(0, lambda b: b[:500])
        self.refused(INPUT, self.shards[0])

    def test_truncated_data(self):
        self.raw(1, lambda b: b[:-4])
        self.refused(INPUT, self.shards[1])

    def test_oversize_header(self):
        self.raw(0, lambda b: struct.pack("<Q", 1 << 62) + b[8:])
        self.refused(INPUT, self.shards[0], "header")

    def test_overlap(self):
        def overlap(data):
            n = struct.unpack_from("<Q", data)[0]
            header = json.loads(data[8:8 + n])
            names = [k for k in header if k != "__metadata__"]
            same = [k for k in names if header[k]["shape"] == header[names[1]]["shape"]]
            header[same[1]]["data_offsets"] = header[same[0]]["data_offsets"]
            text = json.dumps(header).encode()
            return struct.pack("<Q", len(text)) + text + data[8 + n:]
        self.raw(0, overlap)
        self.refused(INPUT, self.shards[0])

    def test_index_outside_the_folder(self):
        shutil.copy(os.path.join(self.model, self.shards[0]), self.path("x.safetensors"))
        self.edit_json("model.safetensors.index.json",
                       lambda v: v["weight_map"].update({"model.embed_tokens.weight": "../x.safetensors"}))
        self.refused(INPUT, r"\.\./x\.safetensors")

    def test_index_that_lies(self):
        self.edit_json("model.safetensors.index.json",
                       lambda v: v["weight_map"].update({"model.embed_tokens.weight": self.shards[1]}))
        self.refused(INPUT, "embed_tokens", self.shards[1])

    def test_wrong_shape(self):
        def change(t):
            dtype, shape, data = t["model.layers.0.mlp.up_proj.weight"]
            t["model.layers.0.mlp.up_proj.weight"] = (dtype, shape[::-1], data)
        self.edit(0, change)
        self.refused(INPUT, r"model\.layers\.0\.mlp\.up_proj", "256", "128")

    def test_wrong_type(self):
        def change(t):
            _, shape, data = t["model.layers.0.mlp.up_proj.weight"]
            t["model.layers.0.mlp.up_proj.weight"] = ("I32", shape, data)
        self.edit(0, change)
        self.refused(INPUT, r"model\.layers\.0\.mlp\.up_proj", "I32")

    def test_missing_tensor(self):
        self.edit(0, lambda t: t.pop("model.layers.0.mlp.up_proj.weight"))
        self.edit_json("model.safetensors.index.json", lambda v: v["weight_map"].pop("model.layers.0.mlp.up_proj.weight"))
        self.refused(INPUT, r"model\.layers\.0\.mlp\.up_proj")

    def test_nan_and_inf(self):
        # the layers of the last shard belong to the last rank, so that another rank than 0 finds it
        def change(t):
            dtype, shape, data = t["model.layers.1.mlp.up_proj.weight"]
            bad = struct.pack("<3f", float("nan"), float("inf"), float("-inf"))
            t["model.layers.1.mlp.up_proj.weight"] = (dtype, shape, data[:400] + bad + data[412:])
        self.edit(1, change)
        self.refused(INPUT, r"model\.layers\.1\.mlp\.up_proj", r"\b3\b")

    def test_pickles_and_gguf(self):
        for name in ("pytorch_model.bin", "consolidated.00.pth", "model.pt", "model.gguf"):
            with self.subTest(name):
                folder = self.path(name.replace(".", "-"))
                shutil.copytree(STORIES, folder)
                os.rename(os.path.join(folder, "model.safetensors"), os.path.join(folder, name))
                self.refused(INPUT, name.replace(".", r"\."), "safetensors", model=folder)

    def test_unknown_architecture(self):
        self.edit_json("config.json", lambda c: c.update(architectures=["Gemma2ForCausalLM"], model_type="gemma2"))
        self.refused(INPUT, "Gemma2ForCausalLM", "Llama, Mistral")

    def test_config_against_tensors(self):
        for key, value in (("num_hidden_layers", 3), ("intermediate_size", 264), ("num_key_value_heads", 8),
                           ("vocab_size", 511), ("tie_word_embeddings", False)):
            with self.subTest(key):
                make_model.make(self.model, "--layers", 2, "--shards", 2)
                self.edit_json("config.json", lambda c: c.update({key: value}))
                self.refused(INPUT)

    def test_config_out_of_range(self):
        for key, value, words in (("hidden_size", -128, ()), ("hidden_size", 1 << 40, ()),
                                  ("num_attention_heads", 0, ()), ("num_key_value_heads", 3, ("key-value heads",)),
                                  ("hidden_act", "gelu", ("gelu",)), ("rms_norm_eps", "small", ()),
                                  ("rope_scaling", {"rope_type": "longrope", "factor": 4.0}, ("longrope",))):
            with self.subTest(key=key, value=value):
                make_model.make(self.model, "--layers", 2, "--shards", 2)
                self.edit_json("config.json", lambda c: c.update({key: value}))
                self.refused(INPUT, *(words or (key,)))

    def test_group_does_not_divide(self):
        self.refused((USAGE, INPUT), "group", "64", "172", model=STORIES, more=settings("weights.group=64"))

    def test_no_hadamard_matrix(self):
        self.refused((USAGE, INPUT), "172", model=STORIES, more=[*CHANNEL, *settings("rotate.online=[r4]")])

    def test_tokenizer_of_another_vocabulary(self):
        path = os.path.join(self.model, "tokenizer.json")
        self.edit_json("tokenizer.json", lambda t: t["model"]["vocab"].update({"e": 100000}))
        self.assertTrue(os.path.isfile(path))
        for ranks in (0, 3):
            self.bad(INPUT, ["tokenizer", "512"], "eval", "--model", self.model, "--text", TEXT, "--window", 64, ranks=ranks)


class BadText(Case):
    def evaluate(self, code, words, text, *more):
        for ranks in (0, 3):
            self.bad(code, words, "eval", "--model", STORIES, "--text", text, *more, ranks=ranks)

    def test_shorter_than_a_window(self):
        with open(self.path("short.txt"), "w") as f:
            f.write("Once upon a time.")
        self.evaluate(INPUT, [r"short\.txt", r"\b5 tokens", r"\b127\b"], self.path("short.txt"), "--window", 128)

    def test_missing_and_not_text(self):
        self.evaluate(INPUT, [r"nothing\.txt"], self.path("nothing.txt"))
        with open(self.path("latin.txt"), "wb") as f:
            f.write(b"caf\xe9 " * 1000)
        self.evaluate(INPUT, [r"latin\.txt", "UTF-8"], self.path("latin.txt"), "--window", 64)


class BadOutput(Case):
    def quantize(self, out, *more, **how):
        return spin("quantize", "--model", STORIES, "--out", out, *CHANNEL, *more, **how)

    def test_output_exists(self):
        """The run that made it is complete, which is success; another one's output is not replaced."""
        out = self.path("out")
        self.assertEqual(self.quantize(out).rc, 0)
        before = {n: sha256(os.path.join(out, n)) for n in os.listdir(out)}
        for ranks in (0, 3):
            r = self.quantize(out, ranks=ranks)
            self.assertEqual(r.rc, 0, r)
            self.assertIn("complete already", r.err)
            self.assertIn("verified", r.out)
            self.bad(USAGE, ["--force", r"weights\.bits \(was 4, is 8\)"], "quantize", "--model", STORIES, "--out", out,
                     *CHANNEL, *settings("weights.bits=8"), ranks=ranks)
        self.assertEqual(before, {n: sha256(os.path.join(out, n)) for n in os.listdir(out)})
        self.assertEqual(self.quantize(out, "--force", ranks=2).rc, 0)
        with open(os.path.join(out, "events.jsonl")) as f:
            self.assertEqual(len(re.findall(r'"event": ?"run"', f.read())), 1, "events of the output that was replaced")
        self.assertEqual(before["manifest.json"], sha256(os.path.join(out, "manifest.json")))
        (tar,) = (n for n in os.listdir(out) if n.endswith(".tar"))
        with open(os.path.join(out, tar), "r+b") as f:
            f.seek(-4096, os.SEEK_END)
            f.write(b"\1")
        self.assertEqual(self.quantize(out).rc, VERIFY)

    def test_output_of_others_is_left_alone(self):
        out = self.path("home")
        os.makedirs(out)
        with open(os.path.join(out, "thesis.txt"), "w") as f:
            f.write("years of work")
        r = self.quantize(out, "--force")
        self.assertTrue(os.path.isfile(os.path.join(out, "thesis.txt")), r)

    def test_read_only(self):
        folder = self.path("ro")
        os.makedirs(folder)
        if os.geteuid() == 0:
            if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", folder], capture_output=True).returncode:
                folder = "/proc/self"  # nobody can make a folder there
            else:
                self.addCleanup(subprocess.run, ["umount", folder])
        else:
            os.chmod(folder, 0o555)
        out = os.path.join(folder, "out")
        for ranks in (0, 3):
            self.bad(INPUT, ["out"], "quantize", "--model", STORIES, "--out", out, *CHANNEL, out=out, ranks=ranks)

    def test_no_space(self):
        folder = self.path("small")
        os.makedirs(folder)
        if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder],
                                          capture_output=True).returncode:
            self.skipTest("needs the right to mount a small tmpfs")
        self.addCleanup(subprocess.run, ["umount", folder])
        out = os.path.join(folder, "out")
        for ranks in (0, 3):
            self.bad(SPACE, ["space"], "quantize", "--model", STORIES, "--out", out, *CHANNEL, out=out, ranks=ranks)

    def with_faults(self, ranks, faults):
        """quantize once for each fault, three at a time: [(fault, folder, result)]."""
        def one(fault):
            out = self.path(fault.replace(":", "-"))
            return fault, out, self.quantize(out, ranks=ranks, env={"SPINSHARD_FAULT": fault})
        with ThreadPoolExecutor(3) as pool:
            return list(pool.map(one, faults))

    def test_no_space_anywhere(self):
        """The n-th write fails for want of space, for many n and the first, middle and last rank."""
        failed = 0
        for fault, out, r in self.with_faults(3, [f"write:{n}:{rank}:enospc" for rank in (0, 1, 2)
                                                  for n in (1, 2, 3, 5, 8, 13)]):
            with self.subTest(fault):
                if r.rc == 0:  # that rank writes less often
                    self.assertEqual(spin("verify", out).rc, 0)
                    continue
                failed += 1
                self.assertEqual((r.rc, len(r.errors())), (SPACE, 1), f"\n{r}")
                self.assertFalse(os.path.exists(os.path.join(out, "manifest.json")))
                self.assertEqual(self.quantize(out).rc, 0, "does not go on after space was made")
        self.assertGreaterEqual(failed, 9)

    def test_one_rank_cannot_read(self):
        """One of four ranks fails to read while the others wait."""
        failed = 0
        for fault, out, r in self.with_faults(4, [f"read:{n}:{rank}:eio" for rank in (0, 1, 3) for n in (1, 2, 3, 6)]):
            with self.subTest(fault):
                if r.rc == 0:
                    continue
                failed += 1
                rank = int(fault.split(":")[2])
                self.assertEqual((r.rc, len(r.errors())), (INPUT, 1), f"\n{r}")
                self.assertEqual(tars(out), [])
                if rank:
                    self.assertRegex(r.err, rf"rank {rank}\b", f"\n{r}")
        self.assertGreaterEqual(failed, 6)


class BadArchive(Case):
    def setUp(self):
        super().setUp()
        self.out = self.path("out")
        self.good("quantize", "--model", STORIES, "--out", self.out, *CHANNEL, "--set", "archive.shard_bytes=100K")
        self.tars = tars(self.out)
        self.assertGreater(len(self.tars), 2)

    def refused(self, code, *words):
        for args in (["verify", self.out], ["verify", self.out, "--source", STORIES]):
            for ranks in (0, 3):
                self.bad(code, words, *args, ranks=ranks)

    def flip(self, path, where):
        with open(path, "r+b") as f:
            f.seek(where)
            old = f.read(1)[0]
            f.seek(where)
            f.write(bytes([old ^ 16]))

    def test_flipped_bit(self):
        path = os.path.join(self.out, self.tars[1])
        size = os.path.getsize(path)
        # the tar header, the safetensors header, the data, the last tensor, the padding
        for where in (30, 700, size // 2, size - 2500, size - 700):
            with self.subTest(where):
                self.flip(path, where)
                try:
                    self.refused(VERIFY, self.tars[1].replace(".", r"\."))
                finally:
                    self.flip(path, where)
        self.good("verify", self.out)

    def test_missing_part(self):
        os.remove(os.path.join(self.out, self.tars[1]))
        self.refused((INPUT, VERIFY), self.tars[1].replace(".", r"\."))
        self.bad((INPUT, VERIFY), [self.tars[1].replace(".", r"\.")], "eval", "--model", self.out, "--text", TEXT)

    def test_short_part(self):
        path = os.path.join(self.out, self.tars[0])
        os.truncate(path, os.path.getsize(path) - 512)
        self.refused((INPUT, VERIFY), self.tars[0].replace(".", r"\."))

    def test_entry_outside_the_manifest(self):
        path = os.path.join(self.out, self.tars[0])
        extra = self.path("extra.txt")
        with open(extra, "w") as f:
            f.write("not in the manifest")
        subprocess.run(["tar", "--append", "-f", path, "-C", self.dir, "extra.txt"], check=True)
        self.refused((INPUT, VERIFY), self.tars[0].replace(".", r"\."))

    def test_manifest(self):
        path = os.path.join(self.out, "manifest.json")
        with open(path) as f:
            good = f.read()
        for old, new in (('"spinshard-manifest/1"', '"spinshard-manifest/9"'), (self.tars[0], "../" + self.tars[0]),
                         ('"entries"', '"entrees"'), ("{", "[")):
            with self.subTest(new):
                with open(path, "w") as f:
                    f.write(good.replace(old, new, 1))
                self.refused((INPUT, VERIFY), r"manifest\.json")
        os.remove(path)
        self.refused((INPUT, VERIFY), r"manifest\.json")

    def test_another_source(self):
        other = self.path("other")
        shutil.copytree(STORIES, other)
        path = os.path.join(other, "model.safetensors")
        tensors, meta = make_model.read_safetensors(path)
        name = "model.layers.2.mlp.down_proj.weight"
        dtype, shape, data = tensors[name]
        tensors[name] = (dtype, shape, bytes(len(data)))
        make_model.write_safetensors(path, tensors, meta)
        for ranks in (0, 3):
            self.bad((VERIFY, 7), [r"model\.layers\.2\.mlp\.down_proj|source"], "verify", self.out, "--source", other, ranks=ranks)


if __name__ == "__main__":
    main()
