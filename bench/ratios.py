#!/usr/bin/env python3
"""Speed as ratios taken in one run on one machine, each against a named reference or limit.

usage: ratios.py --program build/release/spinshard --model SMOLLM2_DIR --text FILE [--only NAME]...
                 [--python PYTHON_WITH_TRANSFORMERS] [--repeat 3]

  eval       tokens/s of `spinshard eval` in bf16 over those of transformers in bf16: at least 1.5
  quantize   time of quantize without search over reading the source and sha256 of source and result: at most 4
  search     candidate errors a second a core (bench_search): at least 3e8
  fuse       fusion with a dense R1, 8192/28672 shapes, over the fp64 product peak (bench_fuse): at least 60 %
  tokenizer  MB/s of one core (bench_tokenizer): at least 5
  range      time of steps of the objective range (32768 rows) on 2 ranks over that of their products at the
             measured bf16 peak (bench_range): at most 2.5

  ce         tokens/s of a step of the objective ce (2 windows of 1024 tokens, W16A4KV4, detached) over those of the
             same sites in PyTorch (--sites-script, run by --python): at least 2
  gptq       time of the weights in PyTorch (--lab-script, run by --python) over that of the whole of `quantize` on 2 ranks
             (GPTQ per channel after a random Hadamard, 48 x 1024 tokens of --calib), both once: at least 2

Runs alternate, the best of --repeat counts. Run it alone: two busy processes spoil every figure.
"""
import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

from resumable import launcher, own_kernels

TRANSFORMERS = r"""
import json, sys, time, torch
from transformers import AutoModelForCausalLM
from tokenizers import Tokenizer
model, text, window, windows = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(int(sys.argv[5]))
ids = Tokenizer.from_file(model + "/tokenizer.json").encode(open(text, encoding="utf8").read(), add_special_tokens=False).ids
m = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
def run(j):
    x = torch.tensor([ids[j * window:(j + 1) * window]])
    with torch.inference_mode():
        return torch.nn.functional.cross_entropy(m(x).logits[0, :-1].float(), x[0, 1:]).item()
run(0)
t = time.time()
for j in range(windows): run(j)
print(json.dumps({"tokens_per_s": window * windows / (time.time() - t)}))
"""


def bench_eval(a):
    threads, windows, ours, theirs = os.cpu_count(), 8, 0, 0
    for _ in range(a.repeat):
        out = subprocess.run([a.program, "eval", "--quiet", "--json", "--model", a.model, "--text", a.text, "--window",
                              "1024", "--limit", str(windows)], env=own_kernels(threads), capture_output=True, check=True)
        ours = max(ours, json.loads(out.stdout)["tokens_per_s"])
        out = subprocess.run([a.python, "-c", TRANSFORMERS, a.model, a.text, "1024", str(windows), str(threads)],
                             env=own_kernels(threads), capture_output=True, check=True)
        theirs = max(theirs, json.loads(out.stdout.splitlines()[-1])["tokens_per_s"])
    print(f"eval       {ours:.0f} tokens/s, transformers {theirs:.0f}: {ours / theirs:.2f} (at least 1.5)")


def read_and_hash(paths):
    start = time.time()
    for path in paths:
        h = hashlib.sha256()
        with open(path, "rb", buffering=0) as f:
            while piece := f.read(4 << 20):
                h.update(piece)
    return time.time() - start


def bench_quantize(a):
    best, reference = 1e9, 1e9
    for _ in range(a.repeat):
        folder = tempfile.mkdtemp(dir=os.path.dirname(os.path.abspath(a.model)))
        out = os.path.join(folder, "out")
        start = time.time()
        subprocess.run([a.program, "quantize", "--quiet", "--model", a.model, "--out", out, "--set", "weights.group=64"],
                       env=own_kernels(os.cpu_count()), check=True, stdout=subprocess.DEVNULL)
        best = min(best, time.time() - start)
        source = [os.path.join(a.model, f) for f in os.listdir(a.model) if f.endswith(".safetensors")]
        result = [os.path.join(out, f) for f in os.listdir(out) if f.endswith(".tar")]
        reference = min(reference, read_and_hash(source + result))
        shutil.rmtree(folder)
    print(f"quantize   {best:.2f} s, read and sha256 of both {reference:.2f} s: {best / reference:.2f} (at most 4)")


def bench_program(a, name, *args):
    path = os.path.join(os.path.dirname(os.path.abspath(a.program)), "bench", name)
    print(f"-- {name}")
    sys.stdout.flush()
    subprocess.run([path, *args], env=own_kernels(1 if name in ("bench_search", "bench_tokenizer") else os.cpu_count()), check=True)


def bench_range(a):
    """On random rows; then 400 steps of a real run by its own events, against the same peak."""
    path = os.path.join(os.path.dirname(os.path.abspath(a.program)), "bench", "bench_range")
    env = own_kernels(max(1, os.cpu_count() // 2))
    subprocess.run([*launcher(2), path, "100"], env=env, check=True)
    if not a.calib:
        return
    with tempfile.TemporaryDirectory(dir=os.path.dirname(os.path.abspath(a.model))) as folder:
        out = os.path.join(folder, "out")
        subprocess.run([*launcher(2), a.program, "quantize", "--quiet", "--model", a.model, "--out", out, "--calib", a.calib,
                        "--recipe", "range-w4a4kv4", "--set", "weights.scale=max", "--set",
                        "learn=[{objective: range, steps: 400, rows: 32768}]"], env=env, check=True, stdout=subprocess.DEVNULL)
        with open(os.path.join(out, "events.jsonl")) as f:
            events = [json.loads(line) for line in f]
    steps = [e for e in events if e["event"] == "step"]
    share = sum(1 / e["peak_share"] for e in steps) / len(steps)
    print(f"range      SmolLM2, {len(steps)} steps in {steps[-1]['seconds']:.1f} s: {share:.2f} x its products (at most 2.5)")


def ce_tokens_per_s(a, range_grad):
    """Median of the steps; the first measures the sums' scale on the way and is left out."""
    with tempfile.TemporaryDirectory(dir=os.path.dirname(os.path.abspath(a.model))) as folder:
        out = os.path.join(folder, "out")
        phase = "learn=[{objective: ce, steps: 5, batch: 2, window: 1024, range_grad: %s}]" % range_grad
        words = ["calib.windows=8", "calib.window=1024", "rotate.start=had", "rotate.online=[r3, r4]", "weights.scale=max",
                 "activations.bits=4", "kv.bits=4", phase]
        subprocess.run([a.program, "quantize", "--quiet", "--model", a.model, "--out", out, "--calib", a.calib or a.text,
                        *[w for word in words for w in ("--set", word)]],
                       env=own_kernels(os.cpu_count()), check=True, stdout=subprocess.DEVNULL)
        with open(os.path.join(out, "events.jsonl")) as f:
            steps = [e for e in map(json.loads, f) if e["event"] == "step"][1:]
    return sorted(e["tokens_per_s"] for e in steps)[len(steps) // 2]


def bench_ce(a):
    script = a.sites_script or os.path.join(os.environ.get("SPINSHARD_SHARED", "../shared"), "tools", "torch-sites.py")
    ours, through, theirs = 0, 0, 0
    for _ in range(a.repeat):
        ours, through = max(ours, ce_tokens_per_s(a, "detached")), max(through, ce_tokens_per_s(a, "through"))
        out = subprocess.run([a.python, script, a.model, a.calib or a.text, "4"], env=own_kernels(os.cpu_count()),
                             capture_output=True, check=True)
        theirs = max(theirs, json.loads(out.stdout.splitlines()[-1])["tokens_per_s"])
    print(f"ce         {ours:.0f} tokens/s (through the range {through:.0f}), PyTorch {theirs:.0f}: {ours / theirs:.2f} (at least 2)")


def bench_gptq(a):
    script = a.lab_script or os.path.join(os.environ.get("SPINSHARD_SHARED", "../shared"), "tools", "torch-lab.py")
    with tempfile.TemporaryDirectory(dir=os.path.dirname(os.path.abspath(a.model))) as folder:
        words = ["rotate.start=had", "weights.method=gptq", "weights.group=channel", "weights.scale=search", "calib.window=1024",
                 f"calib.windows={a.windows}"]
        start = time.time()
        subprocess.run([*launcher(2), a.program, "quantize", "--quiet", "--model",
                        a.model, "--out", os.path.join(folder, "out"), "--calib", a.calib or a.text,
                        *[w for word in words for w in ("--set", word)]],
                       env=own_kernels(max(1, os.cpu_count() // 2)), check=True, stdout=subprocess.DEVNULL)
        ours = time.time() - start
    out = subprocess.run([a.python, script, "eval", a.model, a.text, "--rot", "had:0", "--weights", "gptq", "--group", "0",
                          "--calib", a.calib or a.text, "--windows", str(a.windows), "--limit", "1"],
                         env=own_kernels(os.cpu_count()), capture_output=True, text=True, check=True)
    theirs = float(re.search(r"weights: (\d+) s", out.stdout).group(1))
    print(f"gptq       {ours:.1f} s, PyTorch {theirs:.0f} s: {theirs / ours:.2f} (at least 2)")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--program", required=True)
    p.add_argument("--model", required=True)
    p.add_argument("--text", required=True)
    p.add_argument("--calib", help="calibration text, for range and ce on the model")
    p.add_argument("--python", default=sys.executable)
    p.add_argument("--sites-script", help="for ce; default: tools/torch-sites.py beside SPINSHARD_SHARED's folders")
    p.add_argument("--lab-script", help="for gptq; default: tools/torch-lab.py there")
    p.add_argument("--windows", type=int, default=48, help="for gptq")
    p.add_argument("--repeat", type=int, default=3)
    p.add_argument("--only", action="append")
    a = p.parse_args()
    todo = {
        "eval": lambda: bench_eval(a),
        "quantize": lambda: bench_quantize(a),
        "search": lambda: bench_program(a, "bench_search"),
        "fuse": lambda: bench_program(a, "bench_fuse"),
        "tokenizer": lambda: bench_program(a, "bench_tokenizer", os.path.join(a.model, "tokenizer.json"), a.text),
        "range": lambda: bench_range(a),
        "ce": lambda: bench_ce(a),
        "gptq": lambda: bench_gptq(a),
    }
    for name, run in todo.items():
        if not a.only or name in a.only:
            run()
            sys.stdout.flush()


if __name__ == "__main__":
    main()
