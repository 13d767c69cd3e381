#!/usr/bin/env python3
"""Bad input of learning: files of rotations, states of unfinished runs, numbers that are none, settings with
nothing to learn. One clear message, the right exit code; what can go on does, and says so."""
import array
import hashlib
import json
import os
import shutil
import signal
import struct
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import make_model  # noqa: E402
from kills import Tail  # noqa: E402
from spin import STORIES, TEXT, Case, finish, main, settings, sha256, start, tar_hashes  # noqa: E402

USAGE, INPUT, MISMATCH, NUMERICS, STOPPED = 2, 3, 7, 8, 75
W4A4 = settings("activations.bits=4", "kv.bits=4", "rotate.online=[r3]")
CALIB = ["--calib", TEXT, *settings("calib.windows=4", "calib.window=96")]


def hadamard(n):
    """Orthogonal, of order a power of two; rows of the Sylvester matrix over sqrt(n)."""
    return [(-1) ** bin(i & j).count("1") / n ** 0.5 for i in range(n) for j in range(n)]


def matrix(values, n, dtype="F32"):
    return dtype, [n, n], array.array("f" if dtype == "F32" else "d", values).tobytes()


def public_keys(hidden=64, head_dim=8, layers=5):
    """What other tools save: R1 and R2 of each layer in fp32."""
    return {"R1": matrix(hadamard(hidden), hidden),
            **{f"model.layers.{i}.self_attn.R2": matrix(hadamard(head_dim), head_dim) for i in range(layers)}}


class RotationFiles(Case):
    def write(self, tensors, name="r.safetensors", metadata=None):
        path = self.path(name)
        make_model.write_safetensors(path, tensors, metadata)
        return path

    def refused(self, code, words, path, model=STORIES):
        """As the start of quantize, of learning, and in eval."""
        for ranks in (0, 3):
            out = self.path("out")
            start_at = settings(f"rotate.start={path}")
            self.bad(code, words, "quantize", "--model", model, "--out", out, *start_at, out=out, ranks=ranks)
            self.bad(code, words, "quantize", "--model", model, "--out", out, *start_at, *CALIB, *W4A4,
                     *settings("learn=[{objective: range, steps: 2}]"), out=out, ranks=ranks)
        self.bad(code, words, "eval", "--model", model, "--rotations", path, "--text", TEXT, "--window", 96, *W4A4)

    def test_public_keys_are_taken(self):
        path = self.write(public_keys())
        plain, out = self.path("plain"), self.path("out")
        self.good("quantize", "--model", STORIES, "--out", plain, *settings(f"rotate.start={path}"), ranks=2)
        self.good("verify", plain, "--source", STORIES, "--equivalence")
        self.good("quantize", "--model", STORIES, "--out", out, *CALIB, *W4A4,
                  *settings(f"rotate.start={path}", "learn=[{objective: range, steps: 5}]"), ranks=2)
        self.good("verify", out, "--source", STORIES, "--equivalence")
        self.perplexity(STORIES, TEXT, 96, "--rotations", path, *W4A4)

    def test_wrong_size(self):
        for hidden, head_dim, says in ((32, 8, ["R1", "32", "64 x 64"]), (64, 4, [r"layers\.0\.self_attn\.R2", "8 x 8"])):
            self.refused(INPUT, says, self.write(public_keys(hidden, head_dim)))

    def test_missing_layer(self):
        self.refused(INPUT, [r"layers\.4\.self_attn\.R2", "missing"], self.write(public_keys(layers=4)))

    def test_not_orthogonal(self):
        for factor, says in ((1.01, r"0\.0201"), (float("nan"), "inf")):
            tensors = public_keys()
            tensors["R1"] = matrix([factor * x for x in hadamard(64)], 64, "F64")
            self.refused(INPUT, ["R1", "not orthogonal", says], self.write(tensors))

    def test_pickles(self):
        for name in ("R.bin", "R.pt", "R.pth"):
            with open(self.path(name), "wb") as f:
                f.write(b"PK\3\4 a pickle")
            self.refused(INPUT, [name.replace(".", r"\."), "convert", "torch.load"], self.path(name))
        with open(self.path("R.safetensors"), "wb") as f:
            f.write(b"PK\3\4 a pickle under another name")
        self.refused(INPUT, [r"R\.safetensors"], self.path("R.safetensors"))

    def test_another_model(self):
        """Sizes alike, another file: told by the hash of its header in the metadata; the twin for other tools
        names no model and is taken."""
        models = [make_model.make(self.path(t), "--layers", 2, "--dtype", t) for t in ("F32", "BF16")]
        made = self.path("made")
        self.good("quantize", "--model", models[0], "--out", made)
        path = os.path.join(made, "rotations.safetensors")
        self.refused(INPUT, ["another model", r"model.*\.safetensors", "export-spinquant"], path, models[1])
        self.perplexity(models[0], TEXT, 64, "--rotations", path, *W4A4)
        twin = self.path("twin.safetensors")
        self.good("inspect", made, "--export-spinquant", twin)
        self.perplexity(models[1], TEXT, 64, "--rotations", twin, *W4A4)


class States(Case):
    """Of a run that was stopped while it learned."""
    STEPS = 400

    def setUp(self):
        super().setUp()
        self.out = self.path("out")
        self.args = self.command(self.out)

    def command(self, out, model=STORIES, text=TEXT):
        return ["quantize", "--model", model, "--out", out, "--calib", text, *CALIB[2:], *W4A4,
                *settings("learn=[{objective: range, steps: %d, rows: 8192}]" % self.STEPS, "rotate.start=pca")]

    def stopped(self, after=1):
        """Stop at a commit after that step; at least two commits of steps are behind it then."""
        p, tail = start(self.args), Tail(self.out)
        while p.poll() is None and not any(e.get("step", 0) >= after for e in tail.new()):
            time.sleep(0.001)
        p.send_signal(signal.SIGUSR1)
        r = finish(p)
        self.assertEqual(r.rc, STOPPED, f"\n{r}")

    def result(self, out):
        return {**tar_hashes(out), "rotations": sha256(os.path.join(out, "rotations.safetensors"))}

    def whole(self):
        want = self.path("want")
        self.good(*self.command(want))
        return self.result(want)

    def state(self):
        with open(os.path.join(self.out, "run", "state.json")) as f:
            return json.load(f)

    def put_state(self, generations):
        lines = []
        for g in generations:
            body = json.dumps(g["body"], separators=(",", ":"))
            lines.append('{"sha256":"%s","body":%s}' % (hashlib.sha256(body.encode()).hexdigest(), body))
        with open(os.path.join(self.out, "run", "state.json"), "w") as f:
            f.write("[\n" + ",\n".join(lines) + "\n]\n")

    def damage(self, name):
        """A byte of the object that an entry of the newest state names."""
        hex_name = self.state()[0]["body"]["work"][name]["object"]
        with open(os.path.join(self.out, "run", "objects", hex_name), "r+b") as f:
            f.seek(40)
            byte = f.read(1)[0]
            f.seek(40)
            f.write(bytes([byte ^ 1]))

    def test_other_settings(self):
        self.stopped()
        other = self.path("other.txt")
        with open(TEXT) as f, open(other, "w") as g:
            g.write("It was a dark night. " + f.read())
        model = make_model.make(self.path("m"))
        for says, args in ((["calib_ids_sha256"], self.command(self.out, text=other)),
                           ([r"recipe\.learn"], [*self.args, "--set", "learn=[{objective: range, steps: 7}]"]),
                           (["seed"], [*self.args, "--seed", 3]),
                           (["config|headers"], self.command(self.out, model))):
            for ranks in (0, 2):
                self.bad(MISMATCH, [*says, "--force"], *args, out=self.out, ranks=ranks)
        good = self.state()
        bad = json.loads(json.dumps(good))
        for g in bad:
            g["body"]["fingerprint"]["kernels"] = "those of another CPU"
        self.put_state(bad)
        self.bad(MISMATCH, ["kernels", "those of another CPU"], *self.args, out=self.out)
        self.put_state(good)
        self.good(*self.args, ranks=2)
        self.assertEqual(self.whole(), self.result(self.out))

    def test_another_start_file(self):
        """The same path with other rotations in it."""
        path = self.path("r.safetensors")
        make_model.write_safetensors(path, public_keys())
        self.args += settings(f"rotate.start={path}")
        self.stopped()
        tensors = public_keys()
        tensors["R1"] = matrix([-x for x in hadamard(64)], 64)
        make_model.write_safetensors(path, tensors)
        self.bad(MISMATCH, ["start_sha256"], *self.args, out=self.out)

    def test_damaged_state(self):
        self.stopped(60)
        path = os.path.join(self.out, "run", "state.json")
        with open(path) as f:
            text = f.read()
        with open(path, "w") as f:
            f.write(text.replace('"generation":', '"generatiom":', 1))
        r = self.good(*self.args, ranks=2)
        self.assertRegex(r.err, "newest generation is damaged; going on from the one before")
        self.assertEqual(self.whole(), self.result(self.out))

    def test_damaged_objects(self):
        want = self.whole()
        for names, says in ((["learning"], ["going on from the one before", "goes on after step"]),
                            (["learning", "learning.before"], ["the phase starts over"]),
                            (["rotations"], ["learning starts over|are damaged"])):
            with self.subTest(names):
                shutil.rmtree(self.out, ignore_errors=True)
                self.stopped(60)
                before = self.state()[0]["body"]["work"]
                self.assertIn("learning.before", before)
                for name in names:
                    self.damage(name)
                r = self.good(*self.args, ranks=3)
                for word in says:
                    self.assertRegex(r.err, word)
                self.assertRegex(r.err, "contents do not have their hash")
                self.assertEqual(want, self.result(self.out))

    def test_objects_do_not_pile_up(self):
        self.stopped(200)
        work = self.state()[0]["body"]["work"]
        named = {e["object"] for k, e in work.items() if k.startswith(("learning", "rotations"))}
        for e in work.values():
            for cell in e.get("cells", ()) if isinstance(e, dict) else ():
                named.add(cell["object"])
        there = {n for n in os.listdir(os.path.join(self.out, "run", "objects")) if len(n) == 64}
        self.assertEqual(there - named, set())
        self.assertEqual(named - there, set())

    def test_one_writer(self):
        self.STEPS = 4000  # it must not end while others try
        self.args = self.command(self.out)
        p, tail = start(self.args), Tail(self.out)
        while p.poll() is None and not any(e["event"] == "step" for e in tail.new()):
            time.sleep(0.001)
        p.send_signal(signal.SIGSTOP)
        for ranks in (0, 2):
            self.bad(MISMATCH, [f"pid {p.pid}"], *self.args, out=self.out, ranks=ranks)
        p.send_signal(signal.SIGCONT)
        self.assertEqual(finish(p).rc, 0)

    def test_fewer_ranks_than_cells(self):
        for ranks in (0, 3):
            self.bad(MISMATCH, [r"numerics\.grid", "2x2", "needs 4 ranks", "at least that many"], *self.args, "--set",
                     "numerics.grid=2x2", out=self.out, ranks=ranks)
        self.bad(USAGE, [r"numerics\.grid", "2y2"], *self.args, "--set", "numerics.grid=2y2", out=self.out)


class Numbers(Case):
    def spoilt(self, layer, name, value):
        """A model with one large weight matrix: finite, but not what comes of it."""
        model = make_model.make(self.path("m"), "--layers", 3, "--shards", 1)
        (shard,) = [n for n in os.listdir(model) if n.endswith(".safetensors")]
        tensors, meta = make_model.read_safetensors(os.path.join(model, shard))
        for part in name:
            key = f"model.layers.{layer}.mlp.{part}_proj.weight"
            dtype, shape, data = tensors[key]
            self.assertEqual(dtype, "F32")
            tensors[key] = (dtype, shape, struct.pack("<f", value) * (len(data) // 4))
        make_model.write_safetensors(os.path.join(model, shard), tensors, meta)
        return model

    def test_not_finite(self):
        model = self.spoilt(1, ("gate", "up"), 1e25)
        for ranks in (0, 2, 3):
            out = self.path(f"out{ranks}")
            self.bad(NUMERICS, ["not finite", r"layer 1\b", r"sequence 0\b", "step 1"], "quantize", "--model", model,
                     "--out", out, *CALIB, *W4A4, *settings("learn=[{objective: range, steps: 2}]"), out=out, ranks=ranks)


class Nothing(Case):
    def test_text_shorter_than_a_window(self):
        with open(self.path("short.txt"), "w") as f:
            f.write("Once upon a time.")
        for ranks in (0, 3):
            self.bad(INPUT, [r"short\.txt", r"\b5 tokens", "95"], "quantize", "--model", STORIES, "--out", self.path("out"),
                     "--calib", self.path("short.txt"), *CALIB[2:], *W4A4, *settings("learn=[{objective: range}]"),
                     out=self.path("out"), ranks=ranks)

    def test_nothing_to_learn(self):
        for more in (("rotate.r1=false", "rotate.r2=none"),):
            for ranks in (0, 3):
                self.bad(USAGE, ["nothing to learn"], "quantize", "--model", STORIES, "--out", self.path("out"), *CALIB,
                         *W4A4, *settings("learn=[{objective: range}]", *more), out=self.path("out"), ranks=ranks)


if __name__ == "__main__":
    main()
