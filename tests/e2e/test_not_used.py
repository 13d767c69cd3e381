#!/usr/bin/env python3
"""What a run does not use does not stop it: the archive is that of the model without the oddity, and the oddity is said
at most. What is used is refused, by plan and by quantize with the same words, with a way out."""
import json
import os
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import make_model  # noqa: E402
from spin import STORIES, TEXT, Case, main, settings, unpack  # noqa: E402

GPTQ = settings("weights.method=gptq", "calib.windows=2", "calib.window=64")
TINY = ["--layers", 1, "--hidden", 32, "--intermediate", 32, "--heads", 2, "--kv-heads", 1]


def edit(model, name, change):
    path = os.path.join(model, name)
    with open(path, encoding="utf-8") as f:
        value = json.load(f)
    change(value)
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f)


class NotUsed(Case):
    def model(self, name="m"):
        shutil.copytree(STORIES, self.path(name))
        return self.path(name)

    def quantize(self, model, *more):
        out = self.path(f"out{len(os.listdir(self.dir))}")
        return out, self.good("quantize", "--model", model, "--out", out, *more)

    def ids(self):
        path = self.path("ids.txt")
        with open(path, "w") as f:
            f.write(" ".join(str(3 + i * 7 % 500) for i in range(400)))
        return path

    def refused_alike(self, model, words, *more):
        """quantize and plan refuse with the same line."""
        errors = [self.bad(3, words, *command, "--model", model, *more).errors()
                  for command in (["quantize", "--out", self.path("none"), "--calib", TEXT], ["plan"])]
        self.assertEqual(errors[0], errors[1])

    def test_a_token_beyond_the_vocabulary(self):
        def pad(t):
            t["added_tokens"].append({"id": 512, "content": "<pad>", "special": True, "single_word": False,
                                      "lstrip": False, "rstrip": False, "normalized": False})
        want = self.perplexity(STORIES)["ppl"]
        model = self.model()
        edit(model, "tokenizer.json", pad)
        self.quantize(model)
        self.quantize(model, "--calib", TEXT, *GPTQ)  # the text has no <pad>
        self.assertEqual(self.perplexity(model)["ppl"], want)
        text = self.path("pad.txt")
        with open(TEXT, encoding="utf-8") as f, open(text, "w", encoding="utf-8") as to:
            to.write(f.read() + "<pad>")
        for command in (["eval", "--model", model, "--text", text, "--window", 64],
                        ["quantize", "--model", model, "--out", self.path("bad"), "--calib", text, *GPTQ]):
            self.bad(3, [r"<pad>", r"id 512\b", "vocabulary is 512", "pad.txt"], *command)

    def test_a_pattern_that_is_not_read(self):
        model = self.model()
        edit(model, "tokenizer.json", lambda t: t.update(pre_tokenizer={"type": "Telepathy"}))
        _, r = self.quantize(model)
        self.assertIn("Telepathy", r.err)
        self.quantize(model, "--calib-ids", self.ids(), *GPTQ)
        self.good("plan", "--model", model, "--calib-ids", "ids", *GPTQ)
        self.refused_alike(model, ["Telepathy", "--calib-ids"], *GPTQ)

    def test_no_tokenizer(self):
        model = self.model()
        os.remove(os.path.join(model, "tokenizer.json"))
        self.quantize(model)
        self.quantize(model, "--calib-ids", self.ids(), *GPTQ)
        self.bad(3, ["tokenizer.json", "--calib-ids"], "quantize", "--model", model, "--out", self.path("o"),
                 "--calib", TEXT, *GPTQ)

    def test_an_index_that_names_more(self):
        model = make_model.make(self.path("sharded"), *TINY, "--shards", 2)
        same = make_model.make(self.path("whole"), *TINY)

        def more(index):
            index["weight_map"]["model.layers.0.self_attn.rotary_emb.inv_freq"] = "model-00001-of-00002.safetensors"
        edit(model, "model.safetensors.index.json", more)
        _, r = self.quantize(model)
        self.assertRegex(r.err, r"1 tensors that no shard has \(model\.layers\.0\.self_attn\.rotary_emb\.inv_freq\)")
        self.assertEqual(self.perplexity(model)["ppl"], self.perplexity(same)["ppl"])

    def test_a_tensor_that_is_needed_and_in_no_shard(self):
        model = make_model.make(self.path("m"), *TINY, "--shards", 2)
        path = os.path.join(model, "model-00002-of-00002.safetensors")
        tensors, meta = make_model.read_safetensors(path)
        tensors.pop("model.norm.weight")
        make_model.write_safetensors(path, tensors, meta)
        for command in (["quantize", "--out", self.path("none")], ["plan"]):
            self.bad(3, [r"model\.norm\.weight", "found nothing"], *command, "--model", model)

    def test_config_as_python_writes_it(self):
        """Many end tokens, NaN, infinities, numbers beyond 64 bits, equal keys: the last counts, and all are kept."""
        model = self.model()
        path = os.path.join(model, "config.json")
        with open(path) as f:
            text = f.read().rstrip().rstrip("}")
        with open(path, "w") as f:
            f.write(text + ', "eos_token_id": [1,2,3,4,5,6,7,8,9,10,11,12], "a": NaN, "b": [Infinity, -Infinity],'
                    ' "c": 36893488147419103232, "bos_token_id": [1], "d": 1, "d": 2}')
        out, r = self.quantize(model)
        self.assertRegex(r.err, "as Python does")
        self.good("verify", out, "--source", model)
        self.assertEqual(self.perplexity(model)["ppl"], self.perplexity(STORIES)["ppl"])
        with open(os.path.join(unpack(out, out + "-hf"), "config.json")) as f:
            text = f.read()
        got = json.loads(text)
        self.assertTrue(got["a"] != got["a"] and got["b"] == [float("inf"), -float("inf")])
        self.assertEqual((got["c"], got["d"], len(got["eos_token_id"])), (2 ** 65, 2, 12))
        edit(model, "config.json", lambda c: c.update(rms_norm_eps=float("nan")))
        self.bad(3, ["rms_norm_eps", "number"], "quantize", "--model", model, "--out", self.path("bad"))

    def test_sizes_without_hadamard(self):
        """Only `had` and what runs online need one; 100 has one (as of LLaMA models of hidden size 3200)."""
        model = make_model.make(self.path("m"), "--hidden", 60, "--intermediate", 86, "--heads", 2, "--kv-heads", 1,
                                "--head-dim", 30, "--layers", 1)
        self.bad(3, ["Hadamard", "start=orthogonal"], "quantize", "--model", model, "--out", self.path("none"))
        for start in ("orthogonal", "pca", "womi", "identity"):
            out, _ = self.quantize(model, "--calib", TEXT, *settings(
                f"rotate.start={start}", "calib.windows=2", "calib.window=64", "activations.bits=4"))
            self.good("verify", out, "--source", model, "--equivalence")
        hundred = make_model.make(self.path("h"), "--hidden", 200, "--intermediate", 100, "--heads", 2,
                                  "--kv-heads", 1, "--layers", 1)
        out, _ = self.quantize(hundred, *settings("rotate.online=[r3, r4]"))
        self.good("verify", out, "--source", hundred, "--equivalence")


if __name__ == "__main__":
    main()
