#!/usr/bin/env python3
"""docs/ERRORS.md: what each bad input is told, with its exit code. Runs every case, on one process, and compares
with the page; SPINSHARD_WRITE=1 writes the page anew. Each message is one, names the thing that is wrong, and
says what to do or what is allowed. That nothing is left behind, on any number of ranks: test_bad_input.py."""
import io
import json
import os
import re
import shutil
import struct
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import make_model  # noqa: E402
from spin import TESTS, TEXT, Case, main, settings, spin, tars  # noqa: E402

PAGE = os.path.join(os.environ.get("SPINSHARD_SOURCE", os.path.dirname(TESTS)), "docs", "ERRORS.md")
SHARD = "model-00001-of-00002.safetensors"
UP = "model.layers.0.mlp.up_proj.weight"
HEAD = """# What goes wrong, what is said, and the exit code

Made by tests/e2e/test_messages.py (`SPINSHARD_WRITE=1`), which runs every line of it. A failed run says one
thing, once, on stderr: where, what is wrong, and after `try:` what to do. On several ranks one is named: of those with
the smallest code, the lowest. Codes: 2 usage, 3 bad input or model, 4 verification failed, 5 out of space, 6 does not fit, 7 state
does not match, 8 numerics. `SPINSHARD_FAULT` (base/fault.h) stands for a disk, a memory or a node that fails.
"""


def edit_json(path, change):
    with open(path) as f:
        value = json.load(f)
    change(value)
    with open(path, "w") as f:
        json.dump(value, f)


def config(**keys):
    return lambda d: edit_json(os.path.join(d, "config.json"), lambda c: c.update(keys))


def index(change):
    return lambda d: edit_json(os.path.join(d, "model.safetensors.index.json"), change)


def vocabulary(**keys):
    return lambda d: edit_json(os.path.join(d, "tokenizer.json"), lambda t: t["model"].update(keys))


def raw(name, change):
    def apply(d):
        path = os.path.join(d, name)
        with open(path, "rb") as f:
            data = change(f.read())
        with open(path, "wb") as f:
            f.write(data)
    return apply


def header(change):
    """Edit the JSON of the first shard's header."""
    def apply(data):
        n = struct.unpack_from("<Q", data)[0]
        text = change(data[8:8 + n])
        return struct.pack("<Q", len(text)) + text + data[8 + n:]
    return raw(SHARD, apply)


def tensor(name, change):
    def apply(d):
        path = os.path.join(d, SHARD)
        tensors, meta = make_model.read_safetensors(path)
        tensors[name] = change(*tensors[name])
        make_model.write_safetensors(path, tensors, meta)
    return apply


def gone(name):
    return lambda d: os.remove(os.path.join(d, name))


def only(name):
    """The weights are another kind of file."""
    def apply(d):
        for n in os.listdir(d):
            if "safetensors" in n:
                os.remove(os.path.join(d, n))
        open(os.path.join(d, name), "w").close()
    return apply


def repack(change):
    """The first tar of an output, its entries changed; its size in the manifest is made to fit."""
    def apply(d):
        path = os.path.join(d, tars(d)[0])
        with tarfile.open(path) as t:
            entries = [(m, t.extractfile(m).read()) for m in t.getmembers()]
        entries = change(entries)
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as t:
            for m, data in entries:
                t.addfile(m, io.BytesIO(data) if m.isreg() else None)
        size = os.path.getsize(path)
        edit_json(os.path.join(d, "manifest.json"), lambda m: m["tars"][0].update(bytes=size))
    return apply


def extra(name, kind=tarfile.REGTYPE, **more):
    def change(entries):
        m = tarfile.TarInfo(name)
        m.type = kind
        for key, value in more.items():
            setattr(m, key, value)
        return [*entries, (m, b"")]
    return repack(change)


# (what is wrong, words that the message must hold, change to a copy of the model) -> quantize
MODELS = [
    ("no config.json", "config.json", gone("config.json")),
    ("config.json is not JSON", "config.json", raw("config.json", lambda b: b[:40])),
    ("config.json is an LFS pointer", "LFS", raw("config.json", lambda b: b"version https://git-lfs.github.com/spec/v1\noid")),
    ("another architecture", "GPT2LMHeadModel", config(architectures=["GPT2LMHeadModel"], model_type="gpt2")),
    ("a family that is not supported", "1 \\+ w", config(architectures=["Gemma2ForCausalLM"], model_type="gemma2")),
    ("a size out of range", "hidden_size", config(hidden_size=1 << 40)),
    ("heads that do not fit", "key-value heads", config(num_key_value_heads=3)),
    ("a rope scaling that is not supported", "longrope", config(rope_scaling={"rope_type": "longrope", "factor": 4.0})),
    ("more layers than tensors", "layers.2", config(num_hidden_layers=3)),
    ("quantized by another tool", "bitsandbytes", config(quantization_config={"load_in_4bit": True})),
    ("pickled weights", "pytorch_model.bin", only("pytorch_model.bin")),
    ("a GGUF file", "model.gguf", only("model.gguf")),
    ("an adapter", "adapter", only("adapter_config.json")),
    ("no weights", "safetensors", only("notes.txt")),
    ("a shard is missing", SHARD, gone(SHARD)),
    ("a shard is cut short", "truncated", raw(SHARD, lambda b: b[:-4])),
    ("a shard is an LFS pointer", "LFS", raw(SHARD, lambda b: b"version https://git-lfs.github.com/spec/v1\noid")),
    ("a shard is a web page", "web page", raw(SHARD, lambda b: b"<!DOCTYPE html><html>404 Not Found</html>")),
    ("a header of 2^62 bytes", "header", raw(SHARD, lambda b: struct.pack("<Q", 1 << 62) + b[8:])),
    ("a header that is not JSON", "header", header(lambda t: t.replace(b'"shape":', b'"shape";', 1))),
    ("an unknown type", "dtype", header(lambda t: t.replace(b'"F32"', b'"F99"', 1))),
    ("a negative size", "shape", header(lambda t: t.replace(b'"shape":[', b'"shape":[-', 1))),
    ("tensors that overlap", "begins at byte", header(lambda t: re.sub(rb'"data_offsets":\[(\d+),(\d+)\]',
                                                    lambda m: b'"data_offsets":[0,%d]' % (int(m[2]) - int(m[1])), t))),
    ("the index leads out of the folder", r"\.\./x", index(lambda v: v["weight_map"].update({UP: "../x.safetensors"}))),
    ("the index lies", "up_proj", index(lambda v: v["weight_map"].update({UP: SHARD.replace("00001-", "00002-")}))),
    ("a tensor of another shape", "up_proj", tensor(UP, lambda t, s, d: (t, [s[0] * 2, s[1] // 2], d))),
    ("a tensor of another type", "I32", tensor(UP, lambda t, s, d: ("I32", s, d))),
    ("NaN in a weight", "up_proj", tensor(UP, lambda t, s, d: (t, s, struct.pack("<f", float("nan")) + d[4:]))),
]

# (what is wrong, words, arguments after `quantize --model MODEL --out OUT`)
RECIPES = [
    (2, "an unknown flag", "--calbi", ["--calbi", "x"]),
    (2, "an unknown key", r"weights\.grup", settings("weights.grup=64")),
    (2, "a value out of range", "bits", settings("weights.bits=1")),
    (2, "bits between 8 and 16", r"weights\.bits.*9 bits", settings("weights.bits=9")),
    (2, "a form for what is not quantized", r"archive\.form", settings("weights.bits=16", "archive.form=pack-quantized")),
    (2, "R4 in a plain folder", r"rotate\.online", settings("weights.bits=16", "rotate.online=[r4]")),
    (2, "learning for weights that stay as they are", r"rotate\.start=OUT",
     ["--calib", "TEXT", *settings("weights.bits=16", "activations.bits=4", "learn=[{objective: range, weights: true}]")]),
    (2, "a word that is not one of the list", "method", settings("weights.method=best")),
    (2, "a recipe that does not exist", "nowhere", ["--recipe", "nowhere"]),
    (2, "a recipe that is not YAML", "line 3", ["--recipe", "RECIPE"]),
    (2, "a group that does not divide", "group", settings("weights.group=48")),
    (2, "a size with an unknown unit", "4X", ["--mem", "4X"]),
    (6, "a limit that is too small", "--mem", ["--mem", "1M"]),
    (2, "learning without a text", "--calib", settings("learn=[{objective: range}]", "activations.bits=4")),
    (3, "a text that does not exist", r"nothing\.txt", ["--calib", "nothing.txt",
                                                        *settings("learn=[{objective: range}]", "activations.bits=4")]),
    (3, "rotations that do not exist", r"nothing\.safetensors", settings("rotate.start=nothing.safetensors")),
]

GPTQ = settings("weights.method=gptq", "calib.windows=4", "calib.window=64")

# (code, what is wrong, words, arguments, change to a copy of the model) -> quantize
ROUNDING = [
    (2, "GPTQ without a text", "--calib", settings("weights.method=gptq"), None),
    (2, "asymmetric 8-bit inputs in a form that says them", "activations.symmetric",
     ["--calib", "TEXT", *GPTQ, *settings("activations.bits=8", "archive.form=int-quantized")], None),
    (2, "one input range a head in a form that says them", "o_group",
     ["--calib", "TEXT", *GPTQ, *settings("activations.bits=8", "activations.symmetric=true", "archive.form=int-quantized")], None),
    (2, "8 bits for inputs that have as many", "without it", settings("activations.eight={mlp: 0}"), None),
    (2, "8 bits for a layer that is not there", "layer 40",
     settings("activations.bits=4", "activations.eight={mlp: [0, 40]}"), None),
    (2, "8 bits for a place that is none", "attn|mlp|o|down", settings("activations.bits=4", "activations.eight={gate: 0}"), None),
    (2, "an average below what is fixed", "on average",
     ["--calib", "TEXT", *settings("activations.bits=4", "activations.eight={mlp: all}", "activations.average=4.1")], None),
    (2, "a strength above 1", r"weights\.alpha", settings("weights.method=gptaq", "weights.alpha=1.5"), None),
    (2, "SmoothQuant's scales under a rotation", "R1", ["--calib", "TEXT", *GPTQ, *settings(
        "scale.start=smooth", "scale.pairs=[norm]", "rotate.r1=true")], None),
    (3, "a text shorter than a window", "window", ["--calib", "TEXT", *GPTQ, *settings("calib.window=4096")], None),
    (3, "a tokenizer that is not BPE", "Unigram", ["--calib", "TEXT", *GPTQ], vocabulary(type="Unigram")),
    (3, "a merge of unknown tokens", "merge", ["--calib", "TEXT", *GPTQ], vocabulary(merges=["no such"])),
    (3, "an id far out of range", "id", ["--calib", "TEXT", *GPTQ], vocabulary(vocab={"a": 1 << 40})),
    (3, "a scratch folder that is a file", "not a folder", ["--calib", "TEXT", *GPTQ, "--scratch", "TEXT"], None),
    (6, "a limit that is too small even with files", "--mem", ["--calib", "TEXT", *GPTQ, "--mem", "1M"], None),
    (7, "a grid of more ranks than there are", "numerics.gptq_grid",
     ["--calib", "TEXT", *GPTQ, *settings("numerics.gptq_grid=2x2", "numerics.gptq_grid_from=16")], None),
    (8, "inputs that overflow", "calibration window 0",
     ["--calib", "TEXT", *GPTQ, *settings("rotate.r1=false", "rotate.r2=none")],
     tensor(UP.replace("up_proj", "down_proj"), lambda t, s, d: (t, s, struct.pack("<f", 3e38) * (len(d) // 4)))),
]

# (what is odd, words of the line, arguments) -> quantize, which goes on
SAID = [
    ("fewer calibration tokens than columns", "damping is raised", [*GPTQ, *settings("calib.windows=1", "calib.window=16")]),
    ("fewer windows in the text than asked for", "they repeat", [*GPTQ, *settings("calib.windows=64")]),
    ("8-bit inputs that no runtime loads", "load in no runtime", [*GPTQ, *settings("activations.bits=8")]),
    ("4-bit inputs", "load in no runtime", [*GPTQ, *settings("activations.bits=4")]),
]

# (code, what is wrong, words, change to a copy of the output) -> verify
OUTPUTS = [
    (3, "no manifest", "manifest.json", gone("manifest.json")),
    (4, "a manifest of another version", "spinshard-manifest/9",
     lambda d: edit_json(os.path.join(d, "manifest.json"), lambda m: m.update(format="spinshard-manifest/9"))),
    (4, "a tar outside of the folder", r"\.\./",
     lambda d: edit_json(os.path.join(d, "manifest.json"), lambda m: m["tars"][0].update(file="../" + m["tars"][0]["file"]))),
    (4, "an entry beyond its tar", "outside",
     lambda d: edit_json(os.path.join(d, "manifest.json"), lambda m: m["entries"][0].update(bytes=1 << 40))),
    (4, "a part is missing", r"\.tar", lambda d: os.remove(os.path.join(d, tars(d)[0]))),
    (4, "a part is cut short", "bytes", lambda d: os.truncate(os.path.join(d, tars(d)[0]), 5120)),
    (4, "a bit of the data is flipped", "sha256", lambda d: raw(tars(d)[0], lambda b: b[:-3000] + bytes([b[-3000] ^ 1]) + b[-2999:])(d)),
    (4, "an absolute name in a tar", "absolute", extra("/etc/passwd")),
    (4, "`..` in a tar", r"\.\.", extra("m/../x")),
    (4, "a link in a tar", "link", extra("m-w4-g32/x", tarfile.SYMTYPE, linkname="/etc/passwd")),
    (4, "a device in a tar", "not a plain file", extra("m-w4-g32/x", tarfile.CHRTYPE)),
    (4, "an entry twice", "twice", repack(lambda e: [*e, e[0]])),
    (4, "names that differ by case alone", "case", extra("m-w4-g32/CONFIG.json")),
    (4, "an entry that the manifest lacks", "not in the manifest", extra("m-w4-g32/x")),
    (4, "a recipe.yaml of another run", "recipe",
     lambda d: raw("recipe.yaml", lambda b: b.replace(b"seed: 0", b"seed: 1"))(d)),
]

# (code, what fails, words, SPINSHARD_FAULT) -> quantize
FAULTS = [
    (3, "the disk cannot be read", "read", "read:1:eio"),
    (5, "the disk is full", "space", "write:1:enospc"),
    (3, "a flush fails", "flush", "fsync:1:eio"),
    (3, "a rename fails", "rename", "rename:1:eio"),
    (6, "memory ends", "allocate", "malloc:1"),
    (8, "a bit is lost while packing", "unpack", "code:1"),
]


class Messages(Case):
    def setUp(self):
        super().setUp()
        self.model = self.path("m")
        make_model.make(self.model, "--layers", 2, "--hidden", 32, "--intermediate", 32, "--heads", 2, "--kv-heads", 1,
                        "--shards", 2)
        self.out = self.path("out")
        self.good("quantize", "--model", self.model, "--out", self.out)
        with open(self.path("bad.yaml"), "w") as f:
            f.write("weights:\n  bits: [4\n")
        self.n = 0

    def fresh(self, what, change=None):
        self.n += 1
        to = self.path(str(self.n), os.path.basename(what))
        shutil.copytree(what, to)
        if change:
            change(to)
        return to

    def cases(self):
        """(section, code, what, words, arguments, environment), in the order of the page."""
        def quantize(model, *more):
            self.n += 1
            return ["quantize", "--model", model, "--out", self.path(f"o{self.n}"), *more]
        missing = self.path("nowhere")
        yield "Models (`quantize`)", 3, "no such folder", "nowhere", quantize(missing), None
        for what, words, change in MODELS:
            yield "Models (`quantize`)", 3, what, words, quantize(self.fresh(self.model, change)), None
        for code, what, words, more in RECIPES:
            more = [self.path("bad.yaml") if w == "RECIPE" else w for w in more]
            yield "Flags and recipes (`quantize`)", code, what, words, quantize(self.model, *more), None
        for code, what, words, more, change in ROUNDING:
            more = [TEXT if w == "TEXT" else w for w in more]
            yield "GPTQ (`quantize`)", code, what, words, quantize(self.fresh(self.model, change), *more), None
        for what, words, more in SAID:
            yield "Said, and the run goes on (`quantize`)", 0, what, words, quantize(self.model, "--calib", TEXT, *more), None
        yield "Outputs (`quantize`)", 2, "the output of another seed", "--force", ["quantize", "--model", self.model, "--out", self.out,
                                                                                 "--seed", "2"], None
        for code, what, words, change in OUTPUTS:
            yield "Archives (`verify`)", code, what, words, ["verify", self.fresh(self.out, change)], None
        looks = [(2, "a measure that is quantized itself", "quantized", ["eval", "--model", self.out, "--against", self.out, "--text", TEXT]),
                 (3, "inputs of a run that reads no text", "gptq", ["inspect", self.out, "--sites"]),
                 (3, "a report on a folder that is no output", "output folder", ["report", self.model]),
                 (3, "an evaluation that is none", "perplexity", ["report", self.out, "--eval", os.path.join(self.model, "config.json")])]
        for code, what, words, args in looks:
            yield "Looking at it (`eval`, `inspect`, `report`)", code, what, words, args, None
        for code, what, words, fault in FAULTS:
            yield "The machine (`quantize`)", code, what, words, quantize(self.model), {"SPINSHARD_FAULT": fault}

    def said(self, r, words):
        """The one line with these words of a run that went on."""
        self.assertEqual(r.errors(), [], f"\n{r}")
        lines = [line for line in r.err.splitlines() if re.search(words, line)]
        self.assertEqual(len(lines), 1, f"one line with {words}\n{r}")
        return lines[0].removeprefix("warning: ").replace(TEXT, "TEXT").replace("|", "\\|")

    def message(self, r):
        """The message without what differs between runs and machines."""
        lines = r.err.splitlines()
        at = [i for i, line in enumerate(lines) if line.startswith("spinshard: error:")]
        self.assertEqual(len(at), 1, f"one error line is wanted\n{r}")
        text = lines[at[0]][len("spinshard: error: "):]
        if at[0] + 1 < len(lines) and lines[at[0] + 1].startswith("  try:"):
            text += "; " + lines[at[0] + 1].strip()
        text = re.sub(re.escape(self.dir) + r"/\d+/", "", text).replace(self.dir + "/", "").replace(TEXT, "TEXT")
        text = re.sub(r"\bo\d+\b", "OUT", text)
        text = re.sub(r"objects/[\w.-]+\.new", "objects/NEW", text)
        text = re.sub(r"\.\d+\.new\b", ".NEW", text)
        text = re.sub(r"one of: .*", "one of: ...", text)  # recipes come and go
        text = re.sub(r"\b[0-9a-f]{64}\b", "HASH", text)
        text = re.sub(r"(\d+\.\d+|\b\d+) (B|[KMG]iB)\b", "N", text)
        return text.replace("|", "\\|")

    def try_case(self, case):
        try:
            return self.run_case(case)
        except AssertionError as e:
            return str(e)

    def run_case(self, case):
        section, code, what, words, args, env = case
        r = spin(*args, env=env, limit=60)
        self.assertEqual(r.rc, code, f"{what}\n{r}")
        if code == 0:
            return section, code, what, self.said(r, words)
        text = self.message(r)
        self.assertRegex(text, "(?i)" + words, f"{what}\n{r}")
        self.assertRegex(text, r"; try: |must be|not in -?\d", f"{what}: says not what to do\n{r}")
        return section, code, what, text

    def test_page(self):
        cases = list(self.cases())
        with ThreadPoolExecutor(2) as pool:
            rows = list(pool.map(self.try_case, cases))
        wrong = [r for r in rows if isinstance(r, str)]
        self.assertEqual(wrong, [], "\n\n".join(wrong))
        page, section = HEAD, None
        for row in rows:
            if row[0] != section:
                section = row[0]
                page += f"\n## {section}\n\n| wrong | code | message |\n|---|---|---|\n"
            page += f"| {row[2]} | {row[1]} | {row[3]} |\n"
        if os.environ.get("SPINSHARD_WRITE"):
            with open(PAGE, "w") as f:
                f.write(page)
        with open(PAGE) as f:
            self.maxDiff = None
            self.assertEqual(f.read(), page, "docs/ERRORS.md is not what is said now: SPINSHARD_WRITE=1 writes it")


if __name__ == "__main__":
    main()
