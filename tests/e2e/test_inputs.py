#!/usr/bin/env python3
"""Inputs that people have: another head where config.json ties it, texts that are files of other kinds, models in caches
and in folders of any name, files beside the model, packed folders of other tools. Perplexities are those of transformers
where a Python for oracles is there."""
import gzip
import json
import os
import re
import shutil
import struct
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import make_model  # noqa: E402
from spin import STORIES, TEXT, Case, main, oracle, settings, tar_hashes, tars, unpack  # noqa: E402

TINY = ["--layers", 1, "--hidden", 32, "--intermediate", 32, "--heads", 2, "--kv-heads", 1]
HEAD, EMBED = "lm_head.weight", "model.embed_tokens.weight"
TOLERANCE = 1e-5  # of nats: fp32 sums in two orders, over 5 layers


def edit(model, name, change):
    path = os.path.join(model, name)
    with open(path, encoding="utf-8") as f:
        value = json.load(f)
    change(value)
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, ensure_ascii=False)


def with_head(to, head):
    """STORIES, which ties its head, with a stored head beside it."""
    shutil.copytree(STORIES, to)
    path = os.path.join(to, "model.safetensors")
    tensors, meta = make_model.read_safetensors(path)
    dtype, shape, data = tensors[EMBED]
    tensors[HEAD] = (dtype, shape, head(data))
    make_model.write_safetensors(path, tensors, meta)
    return to


def halves(data):
    """Each weight of the head is half of the embedding's."""
    return struct.pack(f"<{len(data) // 4}f", *(x / 2 for x in struct.unpack(f"<{len(data) // 4}f", data)))


class Inputs(Case):
    def ppl(self, *words, **how):
        return self.perplexity(*words, **how)["nll"]

    # ---- a head that is stored though config.json ties it ----

    def test_the_same_head(self):
        model = with_head(self.path("m"), lambda data: data)
        r = self.good("eval", "--model", model, "--text", TEXT, "--window", 128, "--json")
        self.assertEqual(r.json()["perplexity"][0]["nll"], self.ppl(STORIES))
        self.assertNotIn("lm_head", r.err)

    def test_another_head(self):
        """transformers 5 takes the stored one; the archive says false and holds it."""
        model, out = with_head(self.path("m"), halves), self.path("out")
        untied = with_head(self.path("u"), halves)
        edit(untied, "config.json", lambda c: c.update(tie_word_embeddings=False))
        r = self.good("eval", "--model", model, "--text", TEXT, "--window", 128, "--json", "--dtype", "fp32", ranks=2)
        self.assertRegex(r.err, r"warning: .*lm_head\.weight.*transformers 5")
        nll = r.json()["perplexity"][0]["nll"]
        self.assertEqual(nll, self.ppl(untied, TEXT, 128, "--dtype", "fp32"))
        self.assertGreater(nll, self.ppl(STORIES) + 0.1)
        for rotated in ("true", "false"):
            self.good("quantize", "--model", model, "--out", out, "--force", *settings(f"rotate.r1={rotated}"))
            self.good("verify", out, "--source", model, "--equivalence")
            folder = unpack(out, self.path("hf" + rotated))
            with open(os.path.join(folder, "config.json")) as f:
                self.assertIs(json.load(f)["tie_word_embeddings"], False)
            self.assertGreater(self.ppl(folder), self.ppl(STORIES) + 0.1)
        if os.environ.get("SPINSHARD_ORACLE_PYTHON"):
            self.assertAlmostEqual(nll, oracle(untied, TEXT, 128)["nll"], delta=TOLERANCE)

    def test_the_head_alone(self):
        """The one tensor of a tied model under the name of the head, as transformers 5 reads it."""
        model, out = with_head(self.path("m"), lambda data: data), self.path("out")
        path = os.path.join(model, "model.safetensors")
        tensors, meta = make_model.read_safetensors(path)
        del tensors[EMBED]
        make_model.write_safetensors(path, tensors, meta)
        self.assertEqual(self.ppl(model, ranks=2), self.ppl(STORIES))
        self.good("quantize", "--model", model, "--out", out)
        self.good("verify", out, "--source", model, "--equivalence")
        self.good("quantize", "--model", STORIES, "--out", self.path("usual"))
        self.assertEqual(self.ppl(out), self.ppl(self.path("usual")))
        self.good("plan", "--model", model)

    def test_special_tokens_said_twice(self):
        """Each pair of places that differ gives one line, and nothing where they agree or say nothing."""
        model = self.path("m")
        shutil.copytree(STORIES, model)
        said = r"warning: .*(add_bos_token|[be]os_token_id)"
        self.assertNotRegex(self.good("eval", "--model", model, "--text", TEXT, "--window", 128).err, said)
        self.assertNotRegex(self.good("quantize", "--model", model, "--out", self.path("a"), *settings()).err, said)
        with open(os.path.join(model, "generation_config.json"), "w") as f:
            json.dump({"bos_token_id": 1, "eos_token_id": [2, 7]}, f)
        edit(model, "tokenizer_config.json", lambda c: c.update(add_bos_token=False))
        edit(model, "config.json", lambda c: c.update(bos_token_id=5, eos_token_id=[7, 2]))
        for r in (self.good("eval", "--model", model, "--text", TEXT, "--window", 128),
                  self.good("quantize", "--model", model, "--out", self.path("b"), *settings(), ranks=2)):
            self.assertEqual(len(re.findall(said, r.err)), 3, r.err)
            self.assertRegex(r.err, "begins a text with the token 1, and bos_token_id of config.json is another")
            self.assertRegex(r.err, "add_bos_token of tokenizer_config.json is false, and tokenizer.json puts a token")
            self.assertRegex(r.err, "bos_token_id is 5 in config.json and 1 in generation_config.json")

    # ---- kinds of text ----

    def written(self, name, data):
        path = self.path(name)
        with open(path, "wb") as f:
            f.write(data)
        return path

    def test_json_lines(self):
        """They are the text that their "text" make, whatever the file is called; blank lines do not count."""
        with open(TEXT, encoding="utf-8") as f:
            lines = f.read().splitlines()
        plain = self.written("plain.txt", ("\n".join(lines) + "\n").encode())
        text = "\n\n".join(json.dumps({"id": i, "text": line}) for i, line in enumerate(lines))
        for name in ("x.jsonl", "x.txt"):
            self.assertEqual(self.ppl(STORIES, self.written(name, text.encode())), self.ppl(STORIES, plain))
        for data, words in ((b'{"text": "a"}\n{"content": "b"}\n', "line 2.*no \"text\""),
                            (b'{"text": "a"}\nnot JSON\n', "line 2"), (b'{"text": 3}\n', "no \"text\"")):
            self.refused(self.written("bad.jsonl", data), words)
        chat = json.dumps({"messages": [{"role": "user", "content": "Hi"}]}).encode() + b"\n"
        self.refused(self.written("chat.jsonl", chat), 'line 1.*"messages"[\\s\\S]*try: render.*apply_chat_template')

    def test_card(self):
        """What hubs read: the id of a snapshot in a cache, licence and languages of the source's card, whatever else that says."""
        model = self.path("models--an-org--A.model", "snapshots", "0123abc")
        shutil.copytree(STORIES, model)
        for card, want in (("---\nlicense: mit\nlanguage:\n- en\n- 'no'\ntags: [chat]\nwidget: {a: [1]}\n---\n# A model\n",
                            ('license: "mit"\n', 'language: ["en", "no"]\n', '"chat"]\n')),
                           ("# No front matter\n---\nlicense: mit\n---\n", ()), ("---\nlicense: &a mit\n---\n", ()), ("---", ())):
            self.written(os.path.join(model, "README.md"), card.encode())
            out = self.path(f"card-{len(card)}")
            r = self.good("quantize", "--model", model, "--out", out, *settings("weights.group=channel"))
            with open(os.path.join(unpack(out, out + "-hf"), "README.md"), encoding="utf-8") as f:
                front = f.read().split("---\n")[1]
            for line in (*want, "base_model: an-org/A.model\n", "base_model_relation: quantized\n", '"int4"'):
                self.assertIn(line, front)
            self.assertEqual("license" in front, bool(want))
            self.assertEqual("left out" in r.err, "&a" in card, r)
        for name in ("no-slash", "a/b/c", "a b/c", "/c", "a/"):
            self.bad(2, ["archive.base_model", "ORG/NAME"], "quantize", "--model", STORIES, "--out", self.path("no"),
                     *settings("weights.group=channel", f"archive.base_model={name}"))

    def test_mixture(self):
        """--calib A --calib B --calib-mix 3:1 is A A B A and so on: the same archive as of these token ids, window by window."""
        with open(TEXT, encoding="utf-8", newline="") as f:
            text = f.read()
        a, b = text[:len(text) // 2], text[len(text) // 2:]
        raw = [t.encode() for t in (a, b)]
        told = subprocess.run([os.environ["SPINSHARD_TOOL_TOKENIZE"], os.path.join(STORIES, "tokenizer.json")], check=True,
                              input=b"".join(b"%d\n%s" % (len(r), r) for r in raw), capture_output=True).stdout.decode()
        ids = [line.split() for line in told.split("\n")[:2]]
        from_a, from_b = ([["1", *x[i * 31:(i + 1) * 31]] for i in range(6)] for x in ids)
        mixed = [from_a[0], from_a[1], from_b[0], from_a[2], from_a[3], from_a[4], from_b[1], from_a[5]]
        paths = [self.written(name, t) for name, t in (("a.txt", raw[0]), ("b.txt", raw[1]),
                                                       ("ids.txt", " ".join(sum(mixed, [])).encode()))]
        gptq = settings("weights.method=gptq", "calib.windows=8", "calib.window=32")
        texts = ["--calib", paths[0], "--calib", paths[1]]
        for out, how in (("mix", [*texts, "--calib-mix", "3:1"]), ("ids", ["--calib-ids", paths[2]]), ("equal", texts)):
            self.good("quantize", "--model", STORIES, "--out", self.path(out), *how, *gptq)
        self.assertEqual(tar_hashes(self.path("mix")), tar_hashes(self.path("ids")))
        self.assertNotEqual(tar_hashes(self.path("mix")), tar_hashes(self.path("equal")))
        for mix in ("3", "3:0", "3:1:1", "3:-1", "3;1", "a:b", "3:1:"):
            self.bad(2, ["--calib-mix", "for each --calib"], "quantize", "--model", STORIES, "--out", self.path("no"), *texts,
                     "--calib-mix", mix, *gptq)

    def refused(self, path, *words):
        self.bad(3, words, "eval", "--model", STORIES, "--text", path, "--window", 64)
        self.bad(3, words, "quantize", "--model", STORIES, "--out", self.path("none"), "--calib", path,
                 *settings("weights.method=gptq", "calib.window=64"))

    def test_other_kinds_are_named(self):
        with open(TEXT, "rb") as f:
            text = f.read()
        for data, words in ((gzip.compress(text), "gzip[\\s\\S]*try: unpack"), (b"\x28\xb5\x2f\xfd" + text, "zstd"),
                            (b"PAR1" + text + b"PAR1", "parquet[\\s\\S]*datasets"),
                            (json.dumps([{"text": "a"}]).encode(), "JSON array[\\s\\S]*jq"),
                            (json.dumps(["a", "b"], indent=1).encode(), "JSON array"),
                            ("a text".encode("utf-16"), "UTF-16[\\s\\S]*iconv"),
                            ("a text".encode("utf-16-le"), "UTF-16LE"), ("a text".encode("utf-16-be"), "UTF-16BE"),
                            (b"%PDF-1.7\n" + text, "PDF[\\s\\S]*pdftotext"), (b"PK\x03\x04zip", "zip"),
                            (b"\x93NUMPY\x01", "NumPy"), (b"caf\xe9 " * 100, "byte 3 is not UTF-8")):
            self.refused(self.written("file", data), words)

    def test_kinds_of_files_of_a_model(self):
        """What a clone without LFS, a proxy or an editor leaves in the place of JSON is named, and so is a pointer given as text."""
        pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n"
        for data, words in ((pointer, "LFS pointer[\\s\\S]*git lfs pull"), (b"<!DOCTYPE html><html></html>", "web page"),
                            ("{}".encode("utf-16"), "UTF-16"), (gzip.compress(b"{}"), "gzip"), (b"", "is empty")):
            for name in ("config.json", "tokenizer.json", "model.safetensors.index.json"):
                model = make_model.make(self.path(f"m-{name}-{len(data)}"), *TINY, "--shards", 2)
                with open(os.path.join(model, name), "wb") as f:
                    f.write(data)
                self.bad(3, [re.escape(name), words], "eval", "--model", model, "--text", TEXT, "--window", 64)
        self.refused(self.written("pointer.txt", pointer), "LFS pointer[\\s\\S]*git lfs pull")
        self.bad(3, ["LFS pointer[\\s\\S]*git lfs pull"], "eval", "--model", STORIES, "--text", TEXT, "--window", 64, "--recipe",
                 "range-w4a4kv4", "--rotations", self.path("pointer.txt"))
        self.bad(3, ["LFS pointer, not a recipe[\\s\\S]*git lfs pull"], "quantize", "--model", STORIES, "--out", self.path("no-recipe"),
                 "--recipe", self.written("pointer.yaml", pointer))
        ids = self.written("ids", "1 2 3 4 5 6 7 8".encode("utf-16-le"))
        self.bad(3, ["UTF-16, not token ids"], "quantize", "--model", STORIES, "--out", self.path("no-ids"), "--calib-ids", ids,
                 *settings("weights.method=gptq", "weights.group=channel"))
        model = make_model.make(self.path("m"), *TINY)
        self.written("m/tokenizer.json", pointer)
        self.written("m/tokenizer.model", pointer)
        r = self.good("quantize", "--model", model, "--out", self.path("out"))
        self.assertRegex(r.err, r"tokenizer\.model is a Git LFS pointer; it is copied as it is")
        self.bad(3, ["git lfs pull`; or tokenize .*--calib-ids"], "quantize", "--model", model, "--out", self.path("no"),
                 "--calib", TEXT, *settings("weights.method=gptq", "calib.window=64"))

    def test_what_is_given_for_a_model(self):
        tiny = make_model.make(self.path("tiny"), *TINY)
        adapter, old = self.path("adapter"), self.path("old")
        os.makedirs(adapter)
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            self.written(os.path.join("adapter", name), b"{}")
        shutil.copytree(tiny, old)
        os.rename(os.path.join(old, "tokenizer.json"), os.path.join(old, "tokenizer.model"))
        for path, words in (("an-org/A-model", "hf download an-org/A-model"), (os.path.join(tiny, "config.json"), "give the folder"),
                            (self.path("nothing"), "check the path"), (adapter, "adapter_config.json[\\s\\S]*merge_and_unload"),
                            (old, "tokenizer.model is not read[\\s\\S]*save_pretrained")):
            self.bad(3, [words], "eval", "--model", path, "--text", TEXT, ranks=2)

    def test_what_only_looks_like_it(self):
        """Texts that begin with brackets are texts; a byte order mark is none of it."""
        with open(TEXT, "rb") as f:
            text = f.read()
        want = self.ppl(STORIES)
        self.assertEqual(self.ppl(STORIES, self.written("bom.txt", b"\xef\xbb\xbf" + text)), want)
        for begin in (b"[Once] ", b"{Once}\n", b"[1] see \"x\" ", b"[\"Hi\" she said]\n", b"{\n"):
            self.good("eval", "--model", STORIES, "--text", self.written("t", begin + text), "--window", 128)

    def test_task_files(self):
        item = {"query": "Once upon a", "choices": [" time", " dog"], "gold": 0}
        plain = self.written("a.jsonl", (json.dumps(item) + "\n").encode() * 2)
        odd = self.written("b.jsonl", b"\xef\xbb\xbf\n" + json.dumps(item).encode() + b"\r\n\n  \n" + json.dumps(item).encode())
        got = [self.good("eval", "--model", STORIES, "--tasks", p, "--window", 64, "--json").json()["tasks"][0] for p in (plain, odd)]
        self.assertEqual([{k: v for k, v in g.items() if k != "task"} for g in got][0],
                         {k: v for k, v in got[1].items() if k != "task"})
        self.assertEqual(got[0]["n"], 2)

    def test_windows_beyond_the_positions(self):
        model = make_model.make(self.path("m"), *TINY)
        edit(model, "config.json", lambda c: c.update(max_position_embeddings=64))
        for window, said in ((64, 0), (65, 1)):
            for r in (self.good("eval", "--model", model, "--text", TEXT, "--window", window),
                      self.good("quantize", "--model", model, "--out", self.path(f"o{window}"), "--calib", TEXT,
                                *settings("weights.method=gptq", "calib.windows=2", f"calib.window={window}"))):
                self.assertEqual(r.err.count("max_position_embeddings"), said, r)

    # ---- names ----

    def named(self, *folder):
        model = self.path(*folder)
        os.makedirs(os.path.dirname(model), exist_ok=True)
        make_model.make(model, *TINY)
        out = self.path("out")
        self.good("quantize", "--model", model, "--out", out, "--force", *settings("weights.group=channel"))
        name = os.path.basename(unpack(out, self.path("hf")))
        shutil.rmtree(self.path("hf"))
        self.assertEqual(tars(out), [f"{name}-00001-of-00001.tar"])
        self.assertTrue(name.endswith("-w4-channel"))
        return name[:-len("-w4-channel")]

    def test_names(self):
        commit = "0123456789abcdef0123456789abcdef01234567"
        self.assertEqual(self.named("hub", "models--meta-llama--Llama-3.2-1B", "snapshots", commit), "Llama-3.2-1B")
        self.assertEqual(self.named("hub", "models--gpt2", "snapshots", commit), "gpt2")
        self.assertEqual(self.named("snapshots", "x"), "x")
        self.assertEqual(self.named("模型"), "u6a21u578b")
        self.assertEqual(self.named("mod\u00e8le 2"), "modu00e8le-2")
        self.assertEqual(self.named("-x"), "model-x")
        self.assertEqual(self.named(" x"), "model-x")
        self.assertEqual(self.named(os.fsdecode(b"\xff\xfe")), "xffxfe")
        self.assertEqual(self.named(".hidden"), "model.hidden")
        self.assertEqual(len(self.named("n" * 200)), 100)

    # ---- files beside the model ----

    def test_files_beside_it(self):
        model, out = make_model.make(self.path("m"), *TINY), self.path("out")
        more = "additional_chat_templates"
        os.makedirs(os.path.join(model, more, "deeper"))
        copied = ["tekken.json", "params.json", "NOTICE.txt", "chat_template.jinja", f"{more}/tool_use.jinja", f"{more}/rag.jinja"]
        for i, name in enumerate((*copied, "preprocessor.json", ".gitattributes", "pytorch_model.bin", f"{more}/notes.txt",
                                  f"{more}/caf\u00e9.jinja", f"{more}/deeper/x.jinja")):
            self.written(os.path.join("m", name), b"{%d}" % i)
        os.symlink("nowhere", os.path.join(model, more, "dangling.jinja"))
        r = self.good("quantize", "--model", model, "--out", out, ranks=2)
        folder = unpack(out, self.path("hf"))
        for name in copied:
            with open(os.path.join(model, name), "rb") as f, open(os.path.join(folder, name), "rb") as g:
                self.assertEqual(f.read(), g.read(), name)
        self.assertEqual(sorted(os.listdir(os.path.join(folder, more))), ["rag.jinja", "tool_use.jinja"])
        self.assertRegex(r.err, f"not copied into the archive: {more}/caf\u00e9\\.jinja {more}/notes\\.txt preprocessor\\.json\n")
        self.good("verify", out, "--source", model, ranks=2)
        for path in (out, os.path.join(out, tars(out)[0])):  # the folder, and the tar alone, read in place
            self.assertEqual(self.ppl(path), self.ppl(folder))

    def test_links_to_nothing(self):
        """As in a cache that has lost its files."""
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            model = self.path("m-" + name)
            shutil.copytree(STORIES, model)
            os.remove(os.path.join(model, name))
            os.symlink("../blobs/0123", os.path.join(model, name))
            self.bad(3, [re.escape(name) + " is a link to a file that is not there"], "eval", "--model", model, "--text", TEXT)

    def test_no_rotations_beside_it(self):
        """Where a file was looked for beside the archive, the message names the way out, not a path that nobody gave."""
        model, out = make_model.make(self.path("m"), *TINY), self.path("out")
        self.good("quantize", "--model", model, "--out", out, "--calib", TEXT, *settings(
            "kv.bits=4", "kv.clip=search", "calib.windows=2", "calib.window=64"))
        rotations = os.path.join(out, "rotations.safetensors")
        folder, want = unpack(out, self.path("hf")), self.ppl(out)
        self.assertEqual(self.ppl(folder, TEXT, 128, "--rotations", rotations), want)
        os.rename(rotations, self.path("r.safetensors"))
        for path in (folder, out, os.path.join(out, tars(out)[0])):
            evaluate = ["eval", "--model", path, "--text", TEXT, "--window", 128]
            self.bad(3, ["no rotations.safetensors", "--rotations FILE"], *evaluate, ranks=2)
            self.good(*evaluate, "--rotations", self.path("r.safetensors"))
        self.bad(3, ["no rotations.safetensors", "verify without --source"], "verify", out, "--source", model, ranks=2)
        self.bad(3, ["no rotations.safetensors", "output folder"], "inspect", out, "--export-spinquant", self.path("x"))

    def test_kinds_of_rope(self):
        model = make_model.make(self.path("m"), *TINY)
        for kind, keys in (("default", {}), ("linear", {}), ("yarn", {}), ("dynamic", {}),
                           ("llama3", dict(low_freq_factor=1, high_freq_factor=4, original_max_position_embeddings=256))):
            edit(model, "config.json", lambda c, k=kind, more=keys: c.update(rope_scaling=dict(rope_type=k, factor=2.0, **more)))
            told = self.good("inspect", model, "--json").json()["config"]["rope_scaling"]
            self.assertEqual(told, "none" if kind == "default" else kind)

    # ---- weights ----

    def test_names_of_tensors(self):
        """What training wraps a model in begins the names; so does the file of a model without its head."""
        for prefix in ("module.", "_orig_mod.", ""):
            model = make_model.make(self.path("m" + prefix), *TINY)
            path = os.path.join(model, "model.safetensors")
            tensors, meta = make_model.read_safetensors(path)
            name = prefix + (EMBED if prefix else EMBED.removeprefix("model."))
            make_model.write_safetensors(path, {(prefix + n if prefix else n.removeprefix("model.")): t for n, t in tensors.items()}, meta)
            self.bad(3, [re.escape(EMBED), "found nothing, but " + re.escape(name), "save_pretrained"], "quantize", "--model", model,
                     "--out", self.path("none"))

    def test_scales_beyond_fp16(self):
        """A weight of 10^6 asks for a scale of 142857 at 4 bits; fp16 ends at 65504."""
        name, words = "model.layers.2.mlp.up_proj.weight", settings("rotate.r1=false", "rotate.r2=none", "weights.group=channel")

        def with_weight(x):
            model = self.path(f"m{x}")
            shutil.copytree(STORIES, model)
            path = os.path.join(model, "model.safetensors")
            tensors, meta = make_model.read_safetensors(path)
            dtype, shape, data = tensors[name]
            tensors[name] = (dtype, shape, struct.pack("<f", x) + data[4:])
            make_model.write_safetensors(path, tensors, meta)
            return ["quantize", "--model", model, "--out", self.path(f"o{x}"), *words]
        large, fits, fp16 = with_weight(1e6), with_weight(4e5), settings("archive.dtype=fp16")
        self.bad(8, [re.escape(name), "1 scales", "archive.dtype=bf16"], *large, *fp16)
        self.good(*large, "--force", *settings("archive.dtype=bf16"))
        self.good(*fits, *fp16)
        self.good("verify", self.path("o400000.0"), "--source", self.path("m400000.0"))

    # ---- packed folders of other tools ----

    def test_packed_folders(self):
        model, out = make_model.make(self.path("m"), *TINY), self.path("out")
        self.good("quantize", "--model", model, "--out", out)
        folder = unpack(out, self.path("hf"))
        want = self.ppl(folder)

        def changed(change):
            with open(os.path.join(folder, "config.json"), encoding="utf-8") as f:
                before = f.read()
            edit(folder, "config.json", lambda c: change(c["quantization_config"]))
            return before

        def group(q):
            return next(iter(q["config_groups"].values()))
        good = [lambda q: q.update(quantization_status="frozen"),
                lambda q: group(q).update(targets=["re:.*_proj$"]),
                lambda q: q.update(ignore=["lm_head", "re:.*embed_tokens", "visual"])]
        bad = [lambda q: q.update(ignore=["lm_head", "model.layers.0.mlp.down_proj"]),
               lambda q: q.update(ignore=[]), lambda q: q.update(kv_cache_scheme={"num_bits": 8}),
               lambda q: q["config_groups"].update(group_1=group(q)), lambda q: q.update(format="float-quantized"),
               lambda q: q.update(quant_method="gptq"), lambda q: group(q)["weights"].update(actorder="group")]
        for change in good + bad:
            before = changed(change)
            if change in good:
                self.assertEqual(self.ppl(folder), want)
            else:
                self.bad(3, ["config.json"], "eval", "--model", folder, "--text", TEXT, "--window", 64)
            with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as f:
                f.write(before)

    def test_a_packed_folder_that_lacks_a_tensor(self):
        model, out = make_model.make(self.path("m"), *TINY), self.path("out")
        self.good("quantize", "--model", model, "--out", out)
        folder = unpack(out, self.path("hf"))
        path = next(os.path.join(folder, n) for n in os.listdir(folder) if n.endswith(".safetensors"))
        tensors, meta = make_model.read_safetensors(path)
        tensors.pop("model.layers.0.mlp.up_proj.weight_scale")
        make_model.write_safetensors(path, tensors, meta)
        os.remove(os.path.join(folder, "model.safetensors.index.json"))
        os.rename(path, os.path.join(folder, "model.safetensors"))
        self.bad(3, ["up_proj.weight_scale"], "eval", "--model", folder, "--text", TEXT, "--window", 64)


if __name__ == "__main__":
    main()
